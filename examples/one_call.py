# one_call.py
import torch, exactile

device = "cuda" if torch.cuda.is_available() else "cpu"
lengths = [672, 192, 32, 8096]  # tokens of each sequence
cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)  # as every varlen kernel takes them
q = torch.randn(sum(lengths), 32, 128, dtype=torch.bfloat16, device=device)
k = torch.randn(sum(lengths), 8, 128, dtype=torch.bfloat16, device=device)
v = torch.randn(sum(lengths), 8, 128, dtype=torch.bfloat16, device=device)

# flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, causal=True)
out = exactile.varlen_prefill(q, k, v, cu_seqlens, causal=True)
