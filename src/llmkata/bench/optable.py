"""The aten operators a replayed program may contain, each with its price. Fail-closed: what is not here is refused.

Names are base names: ``add`` stands for every overload of ``add`` and for its in-place form ``add_``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from llmkata.bench import prices
from llmkata.bench.guards import GUARDS, Guard
from llmkata.bench.refused import REFUSED


class Kind(StrEnum):
    """What an operator is charged as."""

    matmul = "matmul"
    factorisation = "factorisation"
    pointwise = "pointwise"
    move = "move"
    create = "create"
    random = "random"
    read = "read"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator that may be replayed: its name as ``base.overload``, the callable, its kind and price."""

    name: str
    overload: Any  # torch._ops.OpOverload
    #: Names of its parameters in order.
    parameters: tuple[str, ...]
    kind: Kind
    price: prices.Price
    #: Checks the arguments that the kernel trusts.
    guard: Guard | None
    #: Leaves memory as it finds it: what it returns holds no values yet.
    uninitialised: bool
    #: Names of the parameters that it writes to.
    written: tuple[str, ...] = ()


class UnknownOperator(ValueError):
    """An operator that a replayed program may not contain; the message says which and why."""


def _names(text: str) -> list[str]:
    return text.split()


# Arithmetic, reductions, sorting: the larger of the input and output element counts.
_POINTWISE = _names("""
    __ilshift__ __irshift__ __lshift__ __rshift__ _adaptive_avg_pool2d _adaptive_avg_pool2d_backward
    _adaptive_avg_pool3d _adaptive_avg_pool3d_backward _add_relu _aminmax _conj_physical _dirichlet_grad _foreach_abs
    _foreach_acos _foreach_add _foreach_addcdiv _foreach_addcmul _foreach_asin _foreach_atan _foreach_ceil
    _foreach_clamp_max _foreach_clamp_min _foreach_cos _foreach_cosh _foreach_div _foreach_erf _foreach_erfc
    _foreach_exp _foreach_expm1 _foreach_floor _foreach_frac _foreach_lerp _foreach_lgamma _foreach_log _foreach_log10
    _foreach_log1p _foreach_log2 _foreach_max _foreach_maximum _foreach_minimum _foreach_mul _foreach_neg
    _foreach_norm _foreach_pow _foreach_powsum _foreach_reciprocal _foreach_round _foreach_rsqrt _foreach_sigmoid
    _foreach_sign _foreach_sin _foreach_sinh _foreach_sqrt _foreach_sub _foreach_tan _foreach_tanh _foreach_trunc
    _is_all_true _is_any_true _log_softmax _log_softmax_backward_data _logcumsumexp
    _prelu_kernel _prelu_kernel_backward
    _safe_softmax _softmax _softmax_backward_data _standard_gamma_grad _unique2 _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward _upsample_lanczos2d_aa
    _upsample_lanczos2d_aa_backward _upsample_nearest_exact1d _upsample_nearest_exact1d_backward
    _upsample_nearest_exact2d _upsample_nearest_exact2d_backward _upsample_nearest_exact3d
    _upsample_nearest_exact3d_backward abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_avg_pool3d_backward adaptive_max_pool2d adaptive_max_pool2d_backward add addcdiv addcmul
    affine_grid_generator all amax amin aminmax angle any argmax argmin asin asinh atan atan2 atanh avg_pool1d
    avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor bucketize ceil celu clamp clamp_max clamp_min col2im complex conj_physical
    copysign cos cosh count_nonzero cummax cummin cumprod cumsum deg2rad digamma dist div elu elu_backward eq erf erfc
    erfinv exp exp2 expm1 floor floor_divide fmax fmin fmod frac frexp gcd ge gelu gelu_backward glu glu_backward
    grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward gt hardshrink
    hardshrink_backward hardsigmoid hardsigmoid_backward hardswish hardswish_backward hardtanh hardtanh_backward
    heaviside histc histogram huber_loss huber_loss_backward hypot i0 igamma igammac isin isinf isnan isneginf
    isposinf kthvalue lcm ldexp le leaky_relu leaky_relu_backward lerp lgamma linalg__powsum linalg_cross
    linalg_vector_norm log log10 log1p log2 log_sigmoid_backward log_sigmoid_forward logaddexp logaddexp2 logcumsumexp
    logical_and logical_not logical_or logical_xor logit logit_backward logsumexp lt masked_fill max
    max_pool2d_with_indices max_pool2d_with_indices_backward maximum mean median min minimum mish mode mse_loss
    mse_loss_backward mul mvlgamma nan_to_num nanmedian nansum native_batch_norm native_batch_norm_backward
    native_dropout_backward native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward
    ne neg nextafter nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward nonzero nonzero_static
    norm polar polygamma pow prod rad2deg reciprocal reflection_pad1d_backward reflection_pad2d_backward
    reflection_pad3d_backward relu remainder renorm replication_pad1d_backward replication_pad2d_backward
    replication_pad3d_backward round rrelu_with_noise_backward rsqrt rsub searchsorted sgn sigmoid sigmoid_backward
    sign signbit silu silu_backward sin sinc sinh smooth_l1_loss smooth_l1_loss_backward soft_margin_loss
    soft_margin_loss_backward softplus softplus_backward softshrink softshrink_backward sort special_airy_ai
    special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_chebyshev_polynomial_t
    special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_entr
    special_erfcx special_hermite_polynomial_h special_hermite_polynomial_he special_i0e special_i1 special_i1e
    special_laguerre_polynomial_l special_legendre_polynomial_p special_log_ndtr special_modified_bessel_i0
    special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 special_ndtri
    special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
    special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
    special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0 special_xlog1py special_zeta sqrt std std_mean
    sub sum tan tanh tanh_backward threshold threshold_backward topk trace tril triu trunc unique_consecutive
    unique_dim unique_dim_consecutive upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
    upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
    upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_nearest3d_backward upsample_trilinear3d upsample_trilinear3d_backward var var_mean where xlogy
""")

# Data movement: the bytes written.
_MOVE = _names("""
    _chunk_cat _conj_copy _foreach_clone _foreach_copy _neg_view_copy _reshape_alias_copy _reshape_copy _stack
    _to_copy alias_copy as_strided_copy as_strided_scatter block_diag cat channel_shuffle clone constant_pad_nd copy
    detach_copy diag_embed diagonal_backward diagonal_copy diagonal_scatter embedding embedding_dense_backward
    expand_copy flip gather im2col index index_select lift_fresh_copy masked_scatter masked_scatter_backward
    masked_select permute_copy pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll rot90 select_backward select_copy
    select_scatter slice_backward slice_copy slice_scatter split_copy split_with_sizes_copy squeeze_copy stack t_copy
    take transpose_copy unbind_copy unfold_backward unfold_copy unsqueeze_copy view_as_complex_copy view_as_real_copy
    view_copy
""")

# Memory made or filled with something that is no function of the data.
_CREATE = _names("""
    _foreach_zero arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye fft_fftfreq
    fft_rfftfreq fill full full_like hamming_window hann_window kaiser_window linspace logspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like range scalar_tensor tril_indices triu_indices zero
    zeros zeros_like
""")

# Random draws, made anew by every replay.
_RANDOM = _names("""
   _sample_dirichlet _standard_gamma bernoulli binomial cauchy exponential geometric log_normal
    multinomial native_dropout normal normal_functional poisson rand rand_like randint randint_like randn randn_like
    random randperm rrelu_with_noise rrelu_with_noise_functional uniform
""")

_UNINITIALISED = frozenset(
    ["empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"])

_MATMUL: dict[str, prices.Price] = {
    "mm": prices.matrix_product("self", "mat2"),
    "bmm": prices.matrix_product("self", "mat2"),
    "_int_mm": prices.matrix_product("self", "mat2"),
    "addmm": prices.matrix_product("mat1", "mat2"),
    "_addmm_activation": prices.matrix_product("mat1", "mat2"),
    "baddbmm": prices.matrix_product("batch1", "batch2"),
    "addbmm": prices.matrix_product("batch1", "batch2"),
    "mv": prices.matrix_product("self", "vec"),
    "addmv": prices.matrix_product("mat", "vec"),
    "dot": prices.matrix_product("self", "tensor"),
    "vdot": prices.matrix_product("self", "other"),
    "addr": prices.outer_product,
    "_weight_int8pack_mm": prices.int8_weight_product,
    "convolution": prices.convolution,
    "_convolution": prices.convolution,
    "convolution_backward": prices.convolution_backward,
    "_scaled_dot_product_flash_attention_for_cpu": prices.attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": prices.attention_backward,
    "_trilinear": prices.trilinear,
    "_cdist_forward": prices.distances,
    "_euclidean_dist": prices.distances,
    "_fft_c2c": prices.fourier,
    "_fft_c2r": prices.fourier,
    "_fft_r2c": prices.fourier,
}

_FACTORISATION: dict[str, prices.Price] = {
    "linalg_cholesky_ex": prices.factorisation("self", lambda m, n, k: n**3 / 3),
    "cholesky_inverse": prices.factorisation("self", lambda m, n, k: 2 * n**3 / 3),
    "cholesky_solve": prices.factorisation("input2", lambda m, n, k: 2 * n**2 * k, right="self"),
    "linalg_inv_ex": prices.factorisation("A", lambda m, n, k: 2 * n**3),
    "_linalg_solve_ex": prices.factorisation("A", lambda m, n, k: 2 * n**3 / 3 + 2 * n**2 * k, right="B"),
    "linalg_lu_factor_ex": prices.factorisation("A", lambda m, n, k: max(m, n) * min(m, n) ** 2 - min(m, n) ** 3 / 3),
    "linalg_lu_solve": prices.factorisation("LU", lambda m, n, k: 2 * n**2 * k, right="B"),
    "linalg_solve_triangular": prices.factorisation("self", lambda m, n, k: n**2 * k, right="B"),
    "triangular_solve": prices.factorisation("A", lambda m, n, k: n**2 * k, right="self"),
    "_linalg_det": prices.factorisation("A", lambda m, n, k: 2 * n**3 / 3),
    "_linalg_slogdet": prices.factorisation("A", lambda m, n, k: 2 * n**3 / 3),
    # QR with Q formed; the smaller dimension is the number of reflectors.
    "linalg_qr": prices.factorisation("A", lambda m, n, k: 4 * max(m, n) * min(m, n) ** 2 - 4 * min(m, n) ** 3 / 3),
    "linalg_lstsq": prices.factorisation(
        "self", lambda m, n, k: 2 * n**2 * (m - n / 3) + 4 * m * n * k if m >= n else 2 * m**2 * n + 4 * m * n * k,
        right="b"),
    "_linalg_svd": prices.factorisation("A", lambda m, n, k: 4 * max(m, n) ** 2 * min(m, n) + 22 * min(m, n) ** 3),
    "_linalg_eigh": prices.factorisation("A", lambda m, n, k: 9 * n**3),
    "_linalg_eigvals": prices.factorisation("self", lambda m, n, k: 10 * n**3),
    "linalg_eigvals": prices.factorisation("self", lambda m, n, k: 10 * n**3),
    "linalg_eig": prices.factorisation("self", lambda m, n, k: 25 * n**3),
}

#: Base name -> (kind, price).
TABLE: dict[str, tuple[Kind, prices.Price]] = {
    **{name: (Kind.pointwise, prices.pointwise) for name in _POINTWISE},
    **{name: (Kind.move, prices.bytes_written) for name in _MOVE},
    **{name: (Kind.move, prices.index_put) for name in ("index_put", "_index_put_impl")},
    **{name: (Kind.move, prices.index_rows) for name in ("index_add", "index_copy", "index_fill", "index_reduce")},
    **{name: (Kind.move, prices.scatter) for name in ("put", "scatter", "scatter_add", "scatter_reduce")},
    **{name: (Kind.create, prices.free) for name in _CREATE},
    **{name: (Kind.random, prices.pointwise) for name in _RANDOM},
    **{name: (Kind.read, prices.free) for name in (
        "_local_scalar_dense", "equal", "allclose", "is_nonzero", "_linalg_check_errors")},
    **{name: (Kind.matmul, price) for name, price in _MATMUL.items()},
    **{name: (Kind.factorisation, price) for name, price in _FACTORISATION.items()},
}


def base_name(name: str) -> str:
    """``add_`` -> ``add``: the name that stands for all forms of an operator."""
    if name in TABLE or name in REFUSED or not name.endswith("_"):
        return name
    return name[:-1]


def operator(name: str) -> Operator:
    """The operator called ``base.overload`` in the ``aten`` namespace.

    Raises:
        UnknownOperator: not in the table; the message completes "operator <name> ...".
    """
    packet_name, _, overload_name = name.partition(".")
    base = base_name(packet_name)
    if base in REFUSED:
        raise UnknownOperator(f"{packet_name} {REFUSED[base]}")
    if base not in TABLE:
        raise UnknownOperator(f"{packet_name} has no price")
    packet = getattr(torch.ops.aten, packet_name)
    if overload_name not in packet.overloads():
        raise UnknownOperator(f"{packet_name} has no overload {overload_name!r}")
    overload = getattr(packet, overload_name)
    try:
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeImplicitAutograd")
    except RuntimeError:  # an operator of TorchScript on numbers and lists, which the dispatcher does not know
        raise UnknownOperator(f"{name} does not take tensors") from None
    if composite:
        raise UnknownOperator(f"{name} is a composite of other operators, which are recorded in its place")
    kind, price = TABLE[base]
    arguments = overload._schema.arguments
    written = tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return Operator(name, overload, tuple(a.name for a in arguments), kind, price, GUARDS.get(base),
                    base in _UNINITIALISED, written)
