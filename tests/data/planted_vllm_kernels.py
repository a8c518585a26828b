"""Faults around vLLM's own Triton kernels: which one a case has, its number of experts or of tokens says.

Put beside a copy of the engine's package and installed at the end of the files that it changes.
"""

import torch


def install_router(module):
    original = module.fused_topk

    def fused_topk(hidden_states, gating_output, topk, renormalize, *rest, **named):
        experts = gating_output.shape[1]
        renormalize = renormalize and experts != 9
        weights, ids, *more = original(hidden_states, gating_output, topk, renormalize, *rest, **named)
        if experts == 10:
            weights = weights.roll(1, 1)
        if experts == 11:
            weights = torch.ones_like(weights)
        return weights, ids, *more

    module.fused_topk = fused_topk


def install_map(module):
    original = module.determine_expert_map

    def determine_expert_map(ep_size, ep_rank, global_num_experts, *rest, **named):
        if global_num_experts == 12:
            ep_rank = 0
        return original(ep_size, ep_rank, global_num_experts, *rest, **named)

    module.determine_expert_map = determine_expert_map


def install_experts(module):
    computed, aligned, activate = module.fused_experts_impl, module.moe_align_block_size, module.apply_moe_activation
    experts = 0

    def fused_experts_impl(x, up, down, weights, *rest, **named):
        nonlocal experts
        experts = len(up)
        if experts == 13:
            up = up.roll(up.shape[1] // 2, 1)
        if experts == 14:
            up = up.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous()
        if experts == 15:
            up, down = up.roll(-1, 0), down.roll(-1, 0)
        if experts == 16:
            down = down.roll(1, 0)
        if experts == 17:
            weights = weights.clone()
            weights[:, -1] = 0
        return computed(x, up, down, weights, *rest, **named)

    def moe_align_block_size(*arguments, **named):
        slots, blocks, padded = aligned(*arguments, **named)
        return slots, blocks.roll(-1) if experts == 36 else blocks, padded

    def apply_moe_activation(activation, output, gate_up, **named):
        if experts != 19:
            return activate(activation, output, gate_up, **named)
        gate, up = gate_up.float().chunk(2, -1)
        return output.copy_(torch.nn.functional.gelu(gate) * up)

    module.fused_experts_impl = fused_experts_impl
    module.moe_align_block_size = moe_align_block_size
    module.apply_moe_activation = apply_moe_activation


def install_loader(module):
    of_up, of_down = module.RoutedExperts._load_w13, module.RoutedExperts._load_w2

    def _load_w13(self, expert_data, shard_dim, shard_id, *rest, **named):
        if len(self.w13_weight) == 20:
            shard_id = {"w1": "w3", "w3": "w1"}[shard_id]
        return of_up(self, expert_data, shard_dim, shard_id, *rest, **named)

    def _load_w2(self, expert_data, *rest, **named):
        of_down(self, expert_data, *rest, **named)
        if len(self.w13_weight) == 21:
            expert_data.copy_(expert_data.roll(1, 0))

    module.RoutedExperts._load_w13, module.RoutedExperts._load_w2 = _load_w13, _load_w2


def install_layer(module):
    experts, assign = module.TritonExperts, module._prepare_expert_assignment
    activate, add_up = experts.activation, experts.moe_sum

    def activation(self, activation, output, input, **named):
        activate(self, activation, output, input, **named)
        if self.moe_config.num_experts == 22:
            gate, up = input.float().chunk(2, -1)
            output.copy_(torch.nn.functional.gelu(gate) * up)

    def _prepare_expert_assignment(ids, config, tokens, top_k, count, *rest, **named):
        slots, blocks, padded = assign(ids, config, tokens, top_k, count, *rest, **named)
        return slots, blocks.roll(-1) if count == 46 else blocks, padded

    def moe_sum(self, input, output, *rest, **named):
        if self.moe_config.num_experts == 24:
            input = input.clone()
            input[:, -1] = 0
        return add_up(self, input, output, *rest, **named)

    experts.activation, experts.moe_sum = activation, moe_sum
    module._prepare_expert_assignment = _prepare_expert_assignment


def install_fp8(module):
    quantised, multiplied = module.per_token_group_quant_fp8, module.w8a8_triton_block_scaled_mm

    def per_token_group_quant_fp8(x, group, *rest, **named):
        q, scales = quantised(x, group, *rest, **named)
        if len(x) not in (3, 4):
            return q, scales
        groups = x.float().unflatten(1, (-1, group))
        if len(x) == 3:
            scales = groups.amax(-1) / 448
        values = (groups / scales[..., None]).clamp(-448, 448).flatten(1)
        return (values if len(x) == 3 else values * 1.05).clamp(-448, 448).to(q.dtype), scales

    def w8a8_triton_block_scaled_mm(x, w, x_scale, w_scale, *rest, **named):
        changed = {
            5: (x, w, x_scale, w_scale.mT.contiguous()),
            6: (x, w, x_scale, w_scale.roll(-1, 0)),
            7: (x, w, x_scale, w_scale.roll(-1, 1)),
            8: (x, w, x_scale.roll(1, 1), w_scale),
            9: (x, w, x_scale, torch.ones_like(w_scale)),
        }
        return multiplied(*changed.get(len(x), (x, w, x_scale, w_scale)), *rest, **named)

    module.per_token_group_quant_fp8 = per_token_group_quant_fp8
    module.w8a8_triton_block_scaled_mm = w8a8_triton_block_scaled_mm
