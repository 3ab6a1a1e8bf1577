"""Colors of classes: the official colors of ADE20K and CamVid, and distinct colors for other data."""

from collections.abc import Sequence

import numpy as np

__all__ = ["CAMVID", "palette_of"]

# The colors of the scene parsing benchmark for the 150 classes of ADE20K.
_ADE20K = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
CAMVID = {  # SegNet's classes, in the order of their labels
    "Sky": "808080",
    "Building": "800000",
    "Pole": "c0c080",
    "Road": "804080",
    "Pavement": "3c28de",
    "Tree": "808000",
    "SignSymbol": "c08080",
    "Fence": "404080",
    "Car": "400080",
    "Pedestrian": "404000",
    "Bicyclist": "0080c0",
}


def palette_of(names: Sequence[str]) -> np.ndarray:
    """Return the colors of classes.

    Args:
        names: Names of the classes. The classes of ADE20K and of CamVid have the colors of their authors.

    Returns:
        RGB colors ``[classes, 3]``, 8 bits.

    Example:
        >>> palette_of(["Sky", "Road"])
        array([[128, 128, 128],
               [128,  64, 128]], dtype=uint8)
    """
    known, camvid = _ADE20K.split(), {name.lower(): color for name, color in CAMVID.items()}
    if len(names) == len(known) and names[0] == "wall":
        colors = known
    elif all(name.lower() in camvid for name in names):
        colors = [camvid[name.lower()] for name in names]
    else:
        return np.array([_spread(label + 1) for label in range(len(names))], dtype=np.uint8)
    return np.array([list(bytes.fromhex(color)) for color in colors], dtype=np.uint8)


def _spread(number: int) -> list[int]:
    """Return a color that differs strongly from those of neighboring numbers.

    The lowest bits of the number become the highest bits of red, green and blue in turn.
    """
    return [sum((number >> (3 * i + channel) & 1) << (7 - i) for i in range(3)) for channel in range(3)]
