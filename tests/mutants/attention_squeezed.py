"""Bugs planted in Squeezed Attention."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

FILE, TWO = "tutor/attention/methods/squeezed.py", "tutor/attention/methods/squeezed_hierarchical.py"
UNIT = "tests/attention/test_squeezed.py"
KERNEL, FAST = "tutor/kernels/centroids.py", "tests/kernels/test_centroids.py -k 'float64_does and fp32'"

MUTANTS = [
    Mutant("squeezed: a cluster counts as one key", FILE, "torch.logsumexp(s + counts.log(), -1, keepdim=True) ",
           "torch.logsumexp(s.masked_fill(counts == 0, float('-inf')), -1, keepdim=True) ", UNIT + " -k 'by_hand or add_to_one'"),
    Mutant("squeezed: an empty cluster has a share", FILE, 'return torch.where(counts > 0, s - lse, float("-inf"))',
           "return s - lse", UNIT + " -k empty"),
    Mutant("squeezed: keys are clustered at their own length", FILE, "unit = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12))",
           "unit = x", UNIT + " -k directions"),
    Mutant("squeezed: a centroid is the mean direction", FILE, "centroids, counts = _means(keys, ones, labels)",
           "centroids, counts = _means(torch.nn.functional.normalize(keys, dim=-1), ones, labels)", UNIT + " -k directions"),
    Mutant("squeezed: the window is clustered, too", FILE, "n = k.shape[2] - window\n", "n = k.shape[2]\n",
           UNIT + " -k number_of"),
    Mutant("squeezed: the window is read by nobody", FILE, ".clamp(max=index.prefix)[:, None] - index.window ",
           ".clamp(max=index.prefix)[:, None] ", UNIT + " -k window"),
    Mutant("squeezed: the quantile counts clusters, not keys", FILE, "reached = weights[order].cumsum(0)",
           "reached = torch.ones_like(weights).cumsum(0)", UNIT + " -k share_it_was"),
    Mutant("squeezed: at the threshold a cluster is kept", FILE, "log_e.exp() > threshold", "log_e.exp() >= threshold",
           UNIT + " -k share_it_was"),
    Mutant("squeezed: logarithms are averaged, not shares", FILE,
           "return torch.logsumexp(x, dim, keepdim=True) - math.log(x.shape[dim])", "return x.mean(dim, keepdim=True)",
           UNIT + " -k ask_together"),
    Mutant("squeezed: a query counts keys that come after it", FILE, "(pos + 1).clamp(0, n)]", "(pos + 2).clamp(0, n)]",
           UNIT + " -k inside_the_prefix"),
    Mutant("squeezed: query heads are dealt to KV heads in turn", FILE, "index.labels[i, h // (hq // index.labels.shape[1])]",
           "index.labels[i, h % index.labels.shape[1]]", UNIT + " -k own_kv_head"),
    Mutant("squeezed: a group's mean forgets how many keys a centroid stands for", FILE,
           "tops, members = _means(centroids, counts, parents)",
           "tops, members = _means(centroids, torch.ones_like(counts), parents)", UNIT + " -k below_it"),
    Mutant("squeezed: the second level divides by all keys", FILE, "counts if alive is None else torch.where(alive, counts, 0)",
           "counts", UNIT + " -k two_levels_by_hand"),
    Mutant("squeezed: level 1 keeps all", TWO, "return calibrate([index], self.coarse_sparsity, self.sparsity",
           "return calibrate([index], 0.0, self.sparsity", UNIT + " -k two_level_selector"),
    Mutant("centroid kernel: a cluster counts as one key", KERNEL, "tl.exp2(s - m_safe[:, None]) * n[None, :], 1)",
           "tl.exp2(s - m_safe[:, None]), 1)", FAST),
    Mutant("centroid kernel: the sum is not rescaled", KERNEL, "l = l * tl.exp2(m - m_safe) + ", "l = l + ", FAST),
    Mutant("centroid kernel: empty clusters raise the maximum to infinity", KERNEL,
           "m_safe = tl.where(m_new == float(\"-inf\"), 0.0, m_new) ", "m_safe = m_new ",
           "tests/kernels/test_centroids.py -k empty_clusters"),
    Mutant("centroid kernel: empty clusters are kept", KERNEL, "keep = (n[None, :] > 0) & (s > log2_t)", "keep = s > log2_t",
           "tests/kernels/test_centroids.py -k 'empty_clusters or float64_does and fp32'"),
    Mutant("centroid kernel: the log-sum-exp stays in powers of two", KERNEL, "lse * 0.6931471805599453", "lse", FAST),
    Mutant("centroid kernel: query heads are dealt to KV heads in turn", KERNEL, "c_ptr += batch * stride_cb + (head // G)",
           "c_ptr += batch * stride_cb + (head % (Hq // G))", FAST),
    Mutant("centroid kernel: rows beyond the end vote", KERNEL, "(n[None, :] > 0) & (rows[:, None] < T), tl.exp2(s)",
           "(n[None, :] > 0), tl.exp2(s)", FAST),
    Mutant("centroid kernel: the mean is a sum", KERNEL, "out.sum(2, keepdim=True) / max(t, 1)",
           "out.sum(2, keepdim=True)", FAST),
    Mutant("centroid kernel: the threshold is a natural logarithm", KERNEL, "math.log2(threshold) if",
           "math.log(threshold) if", FAST),
]
