"""Makes policy.json: the dtype that PyTorch's own autocast on CUDA gives the result of an operation.

    python components/cuda_autocast/make.py            # writes policy.json
    python components/cuda_autocast/make.py --check    # asks again, and compares

On a machine with a GPU it is asked itself. Without one, PyTorch's dispatcher is asked about fake CUDA tensors, which have
no values (they must not require grad); of the few kernels that a build for CPUs does not know even then ("documented": bmm,
convolutions, prelu, attention), the answer is what PyTorch's documentation of autocast says, in DOCUMENTED.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

POLICY = Path(__file__).parent / "policy.json"

#: Dtypes of x and y in each column.
INPUTS = {"float32": ("float32", "float32"), "float16": ("float16", "float16"), "mixed": ("float16", "float32"),
          "float64": ("float64", "float64")}  # fmt: skip

#: x and y are 4 x 4, w is four numbers like x, z four like y, i four class numbers, j 4 x 4 indices.
OPERATIONS = (
    # matrix products
    "torch.mm(x, y)", "torch.matmul(x, y)", "x @ y", "x.matmul(y)", "x.mm(y)", "torch.mv(x, z)",
    "F.linear(x, y)", "F.linear(x, y, z)", "torch.addmm(z, x, y)", "torch.einsum('ij,jk->ik', x, y)",
    "torch.bmm(x[None], y[None])", "torch.baddbmm(y[None], x[None], y[None])", "F.conv1d(x[None], y[:, :, None])",
    "F.conv2d(x[None, None], y[None, None])", "F.prelu(x, z)", "F.scaled_dot_product_attention(x[None], y[None], y[None])",
    # in float32
    "x.softmax(-1)", "torch.softmax(x, 0)", "F.softmax(x, dim=-1)", "F.log_softmax(x, -1)", "F.layer_norm(x, (4,))",
    "F.layer_norm(x, (4,), z, z)", "F.rms_norm(x, (4,))", "F.group_norm(x, 2)", "x.exp()", "torch.expm1(x)",
    "x.abs().log()", "torch.log1p(x.abs())", "x.pow(2)", "x**2", "2.0**x", "x.abs().rsqrt()", "x.reciprocal()", "1 / x",
    "x.sum()", "torch.sum(x, 0)", "x.prod()", "x.cumsum(0)", "x.cumprod(0)", "x.norm()", "torch.cosh(x)", "torch.tan(x)",
    "F.softplus(x)", "F.normalize(x)", "F.cosine_similarity(x, y)", "torch.cdist(x, y)", "F.mse_loss(x, y)",
    "F.l1_loss(x, y)", "F.smooth_l1_loss(x, y)", "F.cross_entropy(x, i)", "F.nll_loss(x, i)",
    "F.binary_cross_entropy_with_logits(x, y.abs())",
    # all alike
    "torch.cat([x, y])", "torch.stack((x, y))", "torch.dot(w, z)", "torch.addcmul(x, x, y)", "torch.atan2(x, y)",
    "torch.tensordot(x, y, 1)", "x.scatter_add(0, j, y)",
    # as they are
    "x + y", "x * y", "x - 1", "x / y", "x / 2", "x.mean()", "F.gelu(x)", "F.silu(x)", "x.relu()", "torch.tanh(x)",
    "torch.sigmoid(x)", "x.abs().sqrt()", "x.amax()", "x.sin()", "F.embedding(i, x)", "torch.where(x > 0, x, y)", "x.T", "x.abs()",
    # the caller chose
    "x.sum(dtype=torch.float64)", "x.softmax(-1, dtype=torch.float16)", "F.softmax(x, -1, dtype=torch.float64)",
    "i.sum()", "torch.cumsum(i, 0)",
)  # fmt: skip

_HALF = {"float32": "float16", "float16": "float16", "mixed": "float16", "float64": "float64"}
#: Where no kernel can be asked: these run in half precision, and leave float64 alone.
DOCUMENTED = {
    operation: _HALF
    for operation in OPERATIONS
    if operation.startswith(("torch.bmm", "torch.baddbmm", "F.conv", "F.prelu", "F.scaled_dot_product_attention"))
}


def ask(operation: str, x_dtype: str, y_dtype: str) -> str:
    """The dtype of the result, "error" where torch refuses, "unknown" where this build cannot say."""
    x, y = (torch.empty(4, 4, dtype=getattr(torch, name), device="cuda") for name in (x_dtype, y_dtype))
    w, z = (torch.empty(4, dtype=t.dtype, device="cuda") for t in (x, y))
    i, j = (torch.empty(shape, dtype=torch.long, device="cuda") for shape in ((4,), (4, 4)))
    if torch.cuda.is_available():
        for t in (x, y, w, z, i, j):
            t.fill_(1)
    names = {"torch": torch, "F": F, "x": x, "y": y, "w": w, "z": z, "i": i, "j": j}
    try:
        return str(eval(operation, names).dtype).removeprefix("torch.")
    except RuntimeError as error:
        return "unknown" if "not linked with support for cuda" in str(error) else "error"


def tensors() -> AbstractContextManager:
    """Real CUDA tensors where there are any, else fake ones."""
    if torch.cuda.is_available():
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def policy() -> dict[str, dict[str, str]]:
    """{operation: {column: dtype of the result}}; columns in which torch refuses are left out."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    table: dict[str, dict[str, str]] = {}
    try:
        for operation in OPERATIONS:
            with tensors():
                row = {column: ask(operation, *dtypes) for column, dtypes in INPUTS.items()}
            row = {c: DOCUMENTED[operation][c] if d == "unknown" else d for c, d in row.items()}
            table[operation] = {c: d for c, d in row.items() if d != "error"}
    finally:
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)
    return table


def main() -> int:
    found = policy()
    if "--check" in sys.argv:
        kept = json.loads(POLICY.read_text("utf-8"))
        differing = {k for k in kept.keys() | found.keys() if kept.get(k) != found.get(k)}
        for operation in sorted(differing):
            print(f"{operation}: {kept.get(operation)} in policy.json, {found.get(operation)} here")
        return int(bool(differing))
    rows = [f" {json.dumps(operation)}: {json.dumps(row)}" for operation, row in found.items()]
    POLICY.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
