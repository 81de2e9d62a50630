"""Operators that a replayed program may not contain, by the reason shown to people.

A composite operator reaches the recorder only under ``inference_mode`` and is recorded by its parts; a view needs no
operator, since every tensor argument is a view of a storage. Together with :mod:`llmkata.bench.optable` this covers
every name in torch's ``aten`` namespace; a name in neither (a newer torch, an operator somebody registered) is
refused as well.
"""

from __future__ import annotations


def _names(text: str) -> list[str]:
    return text.split()


_COMPOSITE = _names("""
    __and__ __iand__ __ior__ __ixor__ __or__ __xor__ _add_batch_dim _autocast_to_full_precision
    _autocast_to_reduced_precision _backward _batch_norm_impl_index _batch_norm_impl_index_backward _cast_Byte
    _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short _choose_qparams_per_tensor
    _convolution_double_backward _convolution_mode _cufft_clear_plan_cache _cufft_get_plan_cache_max_size
    _cufft_get_plan_cache_size _cufft_set_plan_cache_max_size _debug_has_internal_overlap _dim_arange
    _embedding_bag_sparse_backward _fused_rms_norm _gather_sparse_backward _has_compatible_shallow_copy_type
    _is_zerotensor _lu_with_info _nnpack_available _pack_padded_sequence_backward _pad_circular _pad_enum
    _pad_packed_sequence _propagate_xla_data _remove_batch_dim _reshape_from_tensor _rowwise_prune
    _saturate_weight_to_fp16 _scaled_dot_product_attention_math _shape_as_tensor _sobol_engine_draw _sobol_engine_ff_
    _sobol_engine_initialize_state_ _sobol_engine_scramble_ _sparse_bsc_tensor_unsafe _sparse_bsr_tensor_unsafe
    _sparse_compressed_tensor_unsafe _sparse_coo_tensor_unsafe _sparse_csc_tensor_unsafe _sparse_csr_tensor_unsafe
    _sparse_mm _test_ambiguous_defaults _test_check_tensor _test_serialization_subcmul _test_string_default
    _thnn_differentiable_gru_cell_backward _thnn_differentiable_lstm_cell_backward _thnn_fused_lstm_cell_backward
    _to_cpu _unpack_dual _use_cudnn_rnn_flatten_weight _validate_sparse_bsc_tensor_args
    _validate_sparse_bsr_tensor_args _validate_sparse_compressed_tensor_args _validate_sparse_coo_tensor_args
    _validate_sparse_csc_tensor_args _validate_sparse_csr_tensor_args _weight_norm
    _weight_norm_differentiable_backward _wrapped_linear_prepack _wrapped_quantized_linear_prepacked absolute
    adaptive_max_pool1d adjoint affine_grid_generator_backward alpha_dropout arccos arccosh arcsin arcsinh arctan
    arctan2 arctanh argsort argwhere atleast_1d atleast_2d atleast_3d batch_norm bilinear broadcast_tensors
    broadcast_to can_cast cartesian_prod cdist chain_matmul chalf choose_qparams_optimized chunk clip coalesce
    column_stack combinations concat concatenate conj contiguous conv1d conv2d conv3d conv_tbc_backward
    conv_transpose1d conv_transpose2d conv_transpose3d corrcoef cosine_embedding_loss cosine_similarity cov cross
    cross_entropy_loss ctc_loss cudnn_is_acceptable cummaxmin_backward cumprod_backward cumulative_trapezoid data det
    diag diagflat diff dim divide dropout dsplit dstack einsum embedding_backward embedding_bag
    embedding_sparse_backward expand_as fake_quantize_per_channel_affine
    fake_quantize_per_channel_affine_cachemask_backward fake_quantize_per_tensor_affine
    fake_quantize_per_tensor_affine_cachemask_backward fbgemm_linear_fp16_weight
    fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation
    fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix feature_alpha_dropout
    feature_dropout fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn
    fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn
    fill_diagonal_ fix flatten flatten_dense_tensors fliplr flipud float_power frobenius_norm
    fused_moving_avg_obs_fake_quant gather_backward ger get_device get_gradients gradient greater greater_equal
    grid_sampler group_norm gru gru_cell hinge_embedding_loss histogramdd hsplit hstack imag index_select_backward
    infinitely_differentiable_gelu_backward inner instance_norm inverse is_complex is_conj is_contiguous
    is_distributed is_floating_point is_inference is_leaf is_neg is_signed is_vulkan_available isclose isfinite isreal
    istft item kl_div kron l1_loss layer_norm less less_equal linalg_cholesky linalg_cond linalg_det linalg_diagonal
    linalg_eigh linalg_eigvalsh linalg_inv linalg_ldl_factor linalg_lu_factor linalg_matmul linalg_matrix_norm
    linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_slogdet linalg_solve linalg_solve_ex
    linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot linear linear_backward
    log_sigmoid log_softmax logdet lstm lstm_cell lu_solve mH mT margin_ranking_loss masked_select_backward matmul
    matmul_backward matrix_H matrix_exp matrix_exp_backward matrix_power max_pool1d max_pool1d_with_indices max_pool2d
    max_pool3d meshgrid mish_backward moveaxis movedim msort multilabel_margin_loss multiply nanmean nanquantile
    narrow narrow_copy native_channel_shuffle native_norm negative nested_to_padded_tensor nll_loss nll_loss2d
    nll_loss_nd nonzero_numpy norm_except_dim not_equal nuclear_norm numel numpy_T one_hot orgqr outer output_nr pad
    pad_sequence pairwise_distance pdist pin_memory pinverse poisson_nll_loss positive prelu promote_types qr quantile
    quantized_gru_cell quantized_lstm_cell quantized_rnn_relu_cell quantized_rnn_tanh_cell ravel real relu6
    requires_grad_ reshape reshape_as resolve_conj resolve_neg result_type retain_grad retains_grad rms_norm rnn_relu
    rnn_relu_cell rnn_tanh rnn_tanh_cell row_stack rrelu scaled_dot_product_attention selu set_data size slogdet
    slow_conv3d smm softmax sparse_bsc_tensor sparse_bsr_tensor sparse_csc_tensor sparse_csr_tensor special_digamma
    special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_gammainc
    special_gammaincc special_gammaln special_i0 special_log1p special_log_softmax special_logit special_logsumexp
    special_multigammaln special_ndtr special_polygamma special_psi special_round special_sinc special_softmax
    special_xlogy square stft storage_offset stride subtract sum_to_size svd swapaxes swapdims sym_is_contiguous
    sym_numel sym_size sym_storage_offset sym_stride take_along_dim tensor_split tensordot thnn_conv2d tile to
    to_dense to_dense_backward to_mkldnn_backward to_sparse to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr
    trace_backward trapezoid trapz triplet_margin_loss true_divide type_as unflatten unflatten_dense_tensors
    unsafe_chunk value_selecting_reduction_backward vander view_as vsplit vstack
""")

_VIEW = _names("""
    _conj _fw_primal _lazy_clone _make_dual _neg_view _reshape_alias _unsafe_view alias as_strided detach diagonal
    expand lift lift_fresh permute select slice split split_with_sizes squeeze t transpose unbind unfold unsafe_split
    unsafe_split_with_sizes unsqueeze view view_as_complex view_as_real
""")

_METADATA = _names("""
    _version _assert_async _assert_scalar _assert_tensor_metadata _coalesced _dimI _dimV _functional_assert_async
    _functional_assert_scalar _functional_sym_constrain_range _functional_sym_constrain_range_for_size
    _has_same_storage_numel _make_dep_token _new_zeros_with_same_feature_meta _nnz _pin_memory _print _resize_output
    _test_parallel_materialize dense_dim from_file is_coalesced is_pinned is_same_size is_set_to record_stream resize
    resize_as resize_as_sparse set slice_inverse sparse_dim sparse_resize sparse_resize_and_clear sym_constrain_range
    sym_constrain_range_for_size
""")

_UNPRICED = _names("""
    _cdist_backward _compute_linear_combination _conv_depthwise2d _convert_weight_to_int4pack
    _convert_weight_to_int4pack_for_cpu _ctc_loss _ctc_loss_backward _dyn_quant_matmul_4bit
    _dyn_quant_pack_4bit_weight _embedding_bag _embedding_bag_backward _embedding_bag_dense_backward
    _embedding_bag_forward_only _embedding_bag_per_sample_weights_backward _foreach_mm _fused_adagrad _fused_adam
    _fused_adamw _fused_rms_norm_backward _fused_sgd _grouped_mm _masked_softmax _masked_softmax_backward
    _mixed_dtypes_linear _native_multi_head_attention _pdist_backward _pdist_forward _scaled_grouped_mm
    _scaled_grouped_mm_v2 _scaled_mm _scaled_mm_v2 _segment_reduce_backward _slow_conv2d_backward _slow_conv2d_forward
    _thnn_fused_gru_cell _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl
    _transform_bias_rescale_qkv _transformer_encoder_layer_fwd _weight_int4pack_mm _weight_int4pack_mm_for_cpu
    _weight_int4pack_mm_with_scales_and_zeros _weight_norm_interface _weight_norm_interface_backward cholesky
    conv_depthwise3d conv_tbc geqrf linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve linalg_lu
    linalg_matrix_exp linalg_pinv lu_unpack mkldnn_convolution mkldnn_linear
    mkldnn_linear_backward mkldnn_linear_backward_input mkldnn_linear_backward_weights mkldnn_rnn_layer
    mkldnn_rnn_layer_backward ormqr segment_reduce slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d
    slow_conv_transpose2d slow_conv_transpose3d
""")

_UNSAFE = _names("""
    _cholesky_solve_helper _cummax_helper _cummin_helper _grid_sampler_2d_cpu_fallback _grid_sampler_2d_cpu_fallback_backward
    _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _unsafe_index _unsafe_index_put
    _unsafe_masked_index _unsafe_masked_index_put_accumulate adaptive_max_pool3d adaptive_max_pool3d_backward
    embedding_renorm fractional_max_pool2d fractional_max_pool2d_backward fractional_max_pool3d
    fractional_max_pool3d_backward max_pool2d_backward max_pool3d_with_indices max_pool3d_with_indices_backward
    max_unpool2d max_unpool3d multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_backward
    multilabel_margin_loss_forward
""")

_BACKEND = _names("""
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    _fused_dropout _amp_foreach_non_finite_check_and_unscale _amp_update_scale _batch_norm_no_update _batch_norm_with_update
    _batch_norm_with_update_functional _coalesce _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo
    _copy_from _copy_from_and_resize _cslt_compress _cslt_sparse_mm _cslt_sparse_mm_search _cudnn_attention_backward
    _cudnn_attention_forward _cudnn_ctc_loss _cudnn_init_dropout_state _cudnn_rnn _cudnn_rnn_backward
    _cudnn_rnn_flatten_weight _efficient_attention_backward _efficient_attention_forward _efficientzerotensor
    _empty_affine_quantized _empty_per_channel_affine_quantized _fake_quantize_learnable_per_channel_affine
    _fake_quantize_learnable_per_channel_affine_backward _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_tensor_affine_backward _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    _fill_mem_eff_dropout_mask_ _flash_attention_backward _flash_attention_forward
    _flash_attention_forward_no_dropout_inplace _foobar _fused_moving_avg_obs_fq_helper
    _fused_moving_avg_obs_fq_helper_functional _fused_sdp_choice _fw_primal_copy _indices _indices_copy
    _jagged_to_padded_dense_forward _lstm_mps _make_dual_copy _make_per_channel_quantized_tensor
    _make_per_tensor_quantized_tensor _masked_scale _mkldnn_reshape _mkldnn_transpose _mps_convolution
    _mps_convolution_transpose _nested_compute_contiguous_strides_offsets _nested_from_padded
    _nested_from_padded_and_nested_example _nested_from_padded_tensor _nested_get_jagged_dummy _nested_get_lengths
    _nested_get_max_seqlen _nested_get_min_seqlen _nested_get_offsets _nested_get_ragged_idx _nested_get_values
    _nested_get_values_copy _nested_select_backward _nested_sum_backward _nested_tensor_from_mask
    _nested_tensor_from_mask_left_aligned _nested_tensor_from_tensor_list _nested_tensor_size
    _nested_tensor_softmax_with_shape _nested_tensor_storage_offsets _nested_tensor_strides _nested_view_from_buffer
    _nested_view_from_buffer_copy _nested_view_from_jagged _nested_view_from_jagged_copy _nnpack_spatial_convolution
    _pack_padded_sequence _padded_dense_to_jagged_forward _philox_key_fold_in _philox_key_split _philox_normal
    _philox_uniform _scaled_dot_product_attention_math_for_mps _scaled_dot_product_cudnn_attention
    _scaled_dot_product_cudnn_attention_backward _scaled_dot_product_efficient_attention
    _scaled_dot_product_efficient_attention_backward _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_backward _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_fused_attention_overrideable_backward _sparse_addmm _sparse_broadcast_to
    _sparse_broadcast_to_copy _sparse_compressed_tensor_with_dims _sparse_coo_tensor_with_dims
    _sparse_coo_tensor_with_dims_and_tensors _sparse_csr_prod _sparse_csr_sum _sparse_log_softmax
    _sparse_log_softmax_backward_data _sparse_mask_projection _sparse_mm_reduce_impl _sparse_mm_reduce_impl_backward
    _sparse_semi_structured_addmm _sparse_semi_structured_apply _sparse_semi_structured_apply_dense
    _sparse_semi_structured_linear _sparse_semi_structured_mm _sparse_semi_structured_tile _sparse_softmax
    _sparse_softmax_backward_data _sparse_sparse_matmul _sparse_sum _sparse_sum_backward _spdiags _spsolve
    _test_autograd_multiple_dispatch _test_autograd_multiple_dispatch_view _test_autograd_multiple_dispatch_view_copy
    _test_functorch_fallback _test_optional_filled_intlist _test_optional_floatlist _test_optional_intlist
    _test_warn_in_autograd _to_dense _to_sparse _to_sparse_bsc _to_sparse_bsr _to_sparse_csc _to_sparse_csr
    _to_sparse_semi_structured _triton_multi_head_attention _triton_scaled_dot_attention _unique _use_cudnn_ctc_loss
    _use_miopen_ctc_loss _validate_compressed_sparse_indices _values _values_copy batch_norm_backward
    batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt batch_norm_gather_stats
    batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats ccol_indices ccol_indices_copy
    col_indices col_indices_copy convolution_backward_overrideable convolution_overrideable copy_sparse_to_sparse
    crow_indices crow_indices_copy cudnn_affine_grid_generator cudnn_affine_grid_generator_backward cudnn_batch_norm
    cudnn_batch_norm_backward cudnn_convolution cudnn_convolution_add_relu cudnn_convolution_relu
    cudnn_convolution_transpose cudnn_grid_sampler cudnn_grid_sampler_backward dequantize empty_quantized
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask glu_backward_jvp glu_jvp
    hash_tensor hspmm indices indices_copy int_repr lstm_mps_backward miopen_batch_norm miopen_batch_norm_backward
    miopen_convolution miopen_convolution_add_relu miopen_convolution_relu miopen_convolution_transpose
    miopen_ctc_loss miopen_depthwise_convolution miopen_rnn miopen_rnn_backward mkldnn_adaptive_avg_pool2d
    mkldnn_adaptive_avg_pool2d_backward mkldnn_max_pool2d mkldnn_max_pool2d_backward mkldnn_max_pool3d
    mkldnn_max_pool3d_backward mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight mps_convolution_backward
    mps_convolution_transpose_backward q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale
    q_zero_point qscheme quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic quantized_batch_norm
    quantized_gru quantized_lstm quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d row_indices
    row_indices_copy sparse_compressed_tensor sparse_coo_tensor sparse_mask sparse_sampled_addmm sspaddmm to_mkldnn
    to_padded_tensor values values_copy
""")

#: Base name (without the trailing underscore of in-place forms) -> why it is refused.
REFUSED: dict[str, str] = {
    **dict.fromkeys(_COMPOSITE, "is a composite of other operators, which are recorded in its place"),
    **dict.fromkeys(_VIEW, "makes views only, which are recorded without an operator"),
    **dict.fromkeys(_METADATA, "changes or asks for the memory or kind of a tensor"),
    **dict.fromkeys(_UNPRICED, "is a fused or specialised kernel without a price here; use its parts"),
    **dict.fromkeys(_UNSAFE, "does not check its indices, or has rarely used semantics that are not priced here"),
    **dict.fromkeys(_BACKEND, "belongs to another device, backend, layout or number format"),
}
