"""ListOps: every label is the value that an independent reading of the text gives, and draws follow the definition."""

import re
from collections import Counter
from itertools import islice
from statistics import median_high, median_low

import pytest

from imgproc_attn import cli
from imgproc_attn.sequences import ListOps, ListOpsFile, write_listops

INNERMOST = re.compile(r"\[(MIN|MAX|MED|SM)((?: \d)+) \]")


def value(source):
    """The value of an expression, by rewriting the innermost lists until one digit is left."""
    text = re.sub(r"\( | \)", "", source)

    def reduce(match):
        values = [int(word) for word in match[2].split()]
        middle = (median_low(values) + median_high(values)) // 2
        return str({"MIN": min(values), "MAX": max(values), "MED": middle, "SM": sum(values) % 10}[match[1]])

    while "[" in text:
        text = INNERMOST.sub(reduce, text)
    return int(text)


def tree(words):
    """The nested pairs of a text with parentheses; a word is a leaf."""
    word = words.pop()
    if word != "(":
        return word
    pair = tree(words), tree(words)
    assert words.pop() == ")"
    return pair


def flat(node, depth=1):
    """(number of tokens, depth, numbers of arguments) of a tree of pairs, read as the published code reads it."""
    if isinstance(node, str):
        assert node.isdigit()
        return 1, depth, []
    arguments, (head, close) = [], node
    assert close == "]"
    while isinstance(head, tuple):
        head, argument = head
        arguments.append(argument)
    assert head in ("[MIN", "[MAX", "[MED", "[SM")
    parts = [flat(argument, depth + 1) for argument in arguments]
    return 2 + sum(p[0] for p in parts), max(p[1] for p in parts), [len(arguments), *(n for p in parts for n in p[2])]


@pytest.mark.parametrize(
    ("generator", "count"),
    [
        (ListOps(), 2),
        (ListOps(min_length=10, max_length=60), 300),
        (ListOps(max_depth=4, max_args=3, min_length=6, max_length=20), 100),
    ],
    ids=["published", "short", "shallow"],
)
def test_expressions(generator, count):
    seen = set()
    for expression in islice(generator.expressions(seed=3), count):
        assert value(expression.source) == expression.target
        words = expression.source.split()[::-1]
        length, depth, arguments = flat(tree(words))
        assert not words
        assert length == expression.length
        assert generator.min_length < length < generator.max_length
        assert depth <= generator.max_depth
        assert set(arguments) <= set(range(2, generator.max_args + 1))
        seen.add(expression.source)
    assert len(seen) == count


def test_draws_follow_the_definition():
    """Shares of operations among all nodes below the root, of operators, of digits and of arguments."""
    generator = ListOps(max_depth=3, max_args=10, min_length=3, max_length=1000)
    operators, digits, arguments, nested, second = Counter(), Counter(), Counter(), 0, 0
    for expression in islice(generator.expressions(seed=0), 3000):
        words = expression.source.split()
        operators.update(word for word in words if word.startswith("["))
        digits.update(word for word in words if word.isdigit())
        root = tree(words[::-1])
        arguments.update(flat(root)[2])
        while isinstance(root[0], tuple):  # the arguments of the root are digits, or operations with probability 1/4
            root = root[0]
            second += 1
            nested += isinstance(root[1], tuple)
    # The distinct expressions are no independent draws; the tolerances are five standard errors or more.
    assert nested / second == pytest.approx(0.25, abs=0.03)
    assert all(operators[name] / operators.total() == pytest.approx(0.25, abs=0.03) for name in operators)
    assert len(digits) == 10
    assert all(share / digits.total() == pytest.approx(0.1, abs=0.015) for share in digits.values())
    assert sorted(arguments) == list(range(2, 11))
    assert all(count / arguments.total() == pytest.approx(1 / 9, abs=0.025) for count in arguments.values())


def test_files(tmp_path, capsys):
    words = ["listops", "--train", 20, "--val", 5, "--test", 5, "--min-length", 5, "--max-length", 40, "--seed", 7]
    for folder in ("once", "again"):
        cli.main([*map(str, words), "--output", str(tmp_path / folder)])
    names = ["basic_train.tsv", "basic_val.tsv", "basic_test.tsv"]
    contents = [[(tmp_path / folder / name).read_bytes() for name in names] for folder in ("once", "again")]
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"Source\tTarget\r\n( ")  # as Python's csv module writes it
    lines = [line for content in contents[0] for line in content.decode().splitlines()[1:]]
    assert len(set(lines)) == len(lines) == 30
    assert all(value(source) == int(target) for source, target in (line.split("\t") for line in lines))
    assert "30 of 30 expressions" in capsys.readouterr().out
    read = ListOpsFile.open(str(tmp_path / "once"), "train")
    tokens, label = read.read(3)
    words = re.sub(r"[()]", " ", lines[3].split("\t")[0]).split()
    known = [*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]
    assert [known[token - 1] for token in read.encode(tokens)] == words
    assert (label, read.name(3)) == (int(lines[3].split("\t")[1]), "basic_train.tsv, line 5")
    other = write_listops(tmp_path / "other", (20, 5, 5), ListOps(min_length=5, max_length=40), seed=8)
    assert other[0].read_bytes() != contents[0][0]


BAD = [
    (["--max-length", "501"], "max_length must be at least min_length + 2, 502, because both are excluded, got 501"),
    (["--max-depth", "1"], "max_depth must be at least 2, got 1"),
    (["--max-args", "1"], "max_args must be at least 2, got 1"),
    (["--max-depth", "3"], "min_length must be below 122, the longest expression of depth 3 with 10 arguments, got 500"),
    (["--train", "0"], "must be a whole number, at least 1"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_settings(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        cli.main(["listops", *words, "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_existing_files_and_too_few_expressions(tmp_path, monkeypatch):
    tiny = ListOps(max_depth=2, max_args=2, min_length=3, max_length=5)  # 4 operators and 100 pairs of digits
    monkeypatch.setattr("imgproc_attn.sequences.listops.DRAWS", 20_000)
    with pytest.raises(ValueError, match="to 4 tokens, got 400 and no other one in 20000 draws. Write fewer"):
        write_listops(tmp_path, (398, 1, 2), tiny)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["basic_train.tsv", "basic_val.tsv"]  # complete ones only
    with pytest.raises(FileExistsError, match=r"must be new files, got .*basic_train.tsv, which exists"):
        write_listops(tmp_path, (1, 1, 1), tiny)
