"""Where a step's time goes: groups by name, overlap counted once, and a profile of a real step."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.training.log.profiling import (
    GROUPS,
    OTHER,
    KernelTime,
    busy_microseconds,
    by_group,
    group_of,
    longest_waits,
)

# Names as an H200 reports them.
NAMES = {
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "matrix products",
    "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<GemmUniversal>>": "matrix products",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x128": "attention",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>": "attention",
    "void cudnn::fusion::compute_dot_do_o_specialized<true, 128>(void const*, void const*)": "attention",
    "triton_poi_fused__scaled_mm__to_copy_add_clamp_silu_backward_t_view_7": "compiled pointwise",
    "_softmax_cross_entropy": "loss",
    "_float8_gradient": "loss",
    "_round_to_float8": "rounding to fp8",
    "triton_poi_fused_add_mul_silu_3": "compiled pointwise",
    "triton_red_fused__to_copy_abs_max_2": "compiled pointwise",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer and clipping",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "collectives",
    "Memcpy DtoD (Device -> Device)": "copies and fills",
    "Memset (Device)": "copies and fills",
    "aten::mm": "matrix products",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "some_new_kernel": OTHER,
}  # fmt: skip

kernels = st.lists(
    st.builds(
        KernelTime,
        st.sampled_from(sorted(NAMES)),
        st.integers(0, 500).map(float),
        st.integers(0, 50).map(float),
    )
)


@pytest.mark.parametrize(("name", "group"), NAMES.items())
def test_groups_by_name(name, group):
    assert group_of(name) == group


@given(kernels)
def test_busy_time_is_the_union_of_the_intervals(given_kernels):
    covered = {tick for k in given_kernels for tick in range(int(k.start), int(k.start + k.duration))}
    assert busy_microseconds(given_kernels) == len(covered)


def test_waits_are_named_by_the_kernels_around_them():
    first, long, after = KernelTime("a", 0, 10), KernelTime("b", 2, 30), KernelTime("c", 40, 5)
    again = [KernelTime("b", 50, 10), KernelTime("c", 61, 1)]
    assert longest_waits([after, first, long, *again]) == {
        "b -> c": {"milliseconds": pytest.approx(0.009), "gaps": 2},
        "c -> b": {"milliseconds": pytest.approx(0.005), "gaps": 1},
    }


@given(kernels)
def test_busy_time_and_waits_fill_the_span(given_kernels):
    if not given_kernels:
        return
    span = max(k.end for k in given_kernels) - min(k.start for k in given_kernels)
    waits = sum(each["milliseconds"] for each in longest_waits(given_kernels, num_places=None).values())
    assert busy_microseconds(given_kernels) + 1e3 * waits == pytest.approx(span)


@given(kernels)
def test_groups_hold_every_kernel_once(given_kernels):
    groups = by_group(given_kernels)
    assert set(groups) <= {name for name, _ in GROUPS} | {OTHER}
    assert sum(group["launches"] for group in groups.values()) == len(given_kernels)
    total = sum(group["milliseconds"] for group in groups.values())
    assert total == pytest.approx(sum(k.duration for k in given_kernels) / 1e3)
    times = [group["milliseconds"] for group in groups.values()]
    assert times == sorted(times, reverse=True)


def test_a_step_of_a_real_run_is_profiled(build_trainer):
    trainer = build_trainer(profile_step=2)
    trainer.train()
    content = json.loads(Path(trainer.args.output_dir, "profile-step-2.json").read_text())
    assert content["step"] == 2
    assert {"matrix products", "attention", "optimizer and clipping"} <= set(content["groups"])
    assert content["busy_milliseconds"] > 0
    assert content["groups"]["matrix products"]["launches"] > 14  # seven a layer, forward and backward
