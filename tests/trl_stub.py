"TRL 1.16.0's loss computation on numbers we choose: its trainer's method, run on a stand-in model that only hands the numbers over."
from types import SimpleNamespace

import torch


class Says(torch.nn.Module):
    "A model whose outputs are fixed."
    is_gradient_checkpointing = False

    def __init__(self, logps, log_p2):
        super().__init__()
        self.logps, self.log_p2 = logps, log_p2

    def forward(self, **kwargs):
        zeros = torch.zeros_like(self.logps).detach()
        return SimpleNamespace(log_probs=self.logps, log_sum_sq_probs=self.log_p2, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


class Accelerator:
    "One process."
    device = 'cpu'
    def gather(self, x): return x
    def gather_for_metrics(self, x): return x
    def unwrap_model(self, model): return model


def trl_loss(logps, ref_logps, mask, log_p2=None, *, loss_type, loss_weights=None, beta=0.1, label_smoothing=0., f_divergence_type='reverse_kl',
             f_alpha_divergence_coef=0.5, ld_alpha=None, use_weighting=False, discopop_tau=0.05):
    "(loss, ∂loss/∂logps `[2B,T-1]`, metrics) for token log-probs `[2B,T-1]`; `mask` is the completion mask `[2B,T]`."
    from collections import defaultdict
    from trl import DPOTrainer
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    logps = logps.detach().clone().requires_grad_()
    policy = Says(logps*mask[:, 1:], log_p2)
    me = SimpleNamespace(
        model=policy, ref_model=Says(ref_logps*mask[:, 1:], log_p2), accelerator=Accelerator(), args=SimpleNamespace(discopop_tau=discopop_tau, gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False, ld_alpha=ld_alpha, precompute_ref_logps=False, beta=beta, label_smoothing=label_smoothing, use_weighting=use_weighting,
        f_divergence_type=f_divergence_type, f_alpha_divergence_coef=f_alpha_divergence_coef, loss_types=types, loss_weights=loss_weights or [1.]*len(types),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1)
    inputs = dict(input_ids=mask.long()*0, attention_mask=torch.ones_like(mask), completion_mask=mask)
    loss = DPOTrainer._compute_loss(me, policy, inputs, False)
    grad, = torch.autograd.grad(loss, logps)
    return loss.detach(), grad, {k: v[-1] for k, v in me._metrics['train'].items()}
