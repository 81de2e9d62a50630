"""The closed list of wire tags: one byte each, then the payload. Integers are little-endian.

====  =====================================================================================
tag   payload
====  =====================================================================================
N T F none, true, false (empty)
i     int64
I     u32 n, n bytes of a signed big integer
f c   float64; two float64
s b   u32 n, n bytes (UTF-8; raw)
l t   u32 n, n values (list; tuple)
S Z   u32 n, n values (set; frozenset)
d     u32 n, n pairs of values (dict; equal keys are refused)
q r   u32 n, n int64; u32 n, n float64 (a list of one exact type, packed)
A     NumPy array: dtype string, u8 ndim, ndim u64 shape, ndim i64 byte strides, u64 offset, u64 n, n bytes
X     torch tensor: dtype string, u8 ndim, ndim u64 shape, ndim i64 strides, u64 n, n bytes
M     torch tensor on the meta device: dtype string, u8 ndim, ndim u64 shape
G     NumPy scalar: dtype string, u32 n, n bytes
Y     torch dtype or NumPy dtype: string ("torch.float32", "numpy.<f4")
J     slice: three values
E     Ellipsis
P     path: string
Q     Fraction: two values (integers)
D     Decimal: string
K     a well-known relative of a plain type: string (its name), value
R     record (dataclass or named tuple): string (type name), u64 handle, u32 n, n pairs of string and value
H     handle: u64 id, string (type name), u64 class key
B     call-back (outwards only): u64 id
O     object of an installed library, pickled (outwards only): u32 n, n bytes
====  =====================================================================================
"""

NONE, TRUE, FALSE = b"N", b"T", b"F"
INT, BIGINT, FLOAT, COMPLEX = b"i", b"I", b"f", b"c"
STR, BYTES = b"s", b"b"
LIST, TUPLE, SET, FROZENSET, DICT = b"l", b"t", b"S", b"Z", b"d"
INTS, FLOATS = b"q", b"r"
ARRAY, TENSOR, META, SCALAR, DTYPE = b"A", b"X", b"M", b"G", b"Y"
SLICE, ELLIPSIS, PATH, FRACTION, DECIMAL = b"J", b"E", b"P", b"Q", b"D"
KIN, RECORD, HANDLE, CALLBACK, PICKLED = b"K", b"R", b"H", b"B", b"O"
