import pytest

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.errors import UsageError


@pytest.mark.parametrize(
    ("key", "value"),
    [("bf16_levels", 0), ("replica_check_every", -1), ("bucket_mb", 0.0), ("bucket_mb", float("nan"))],
)
def test_what_cannot_work_is_refused_by_name(key, value):
    with pytest.raises(UsageError, match=f"^{key}="):
        ReductionConfig(**{key: value})


def test_only_exact_bf16_rounds():
    levels = {
        mode: ReductionConfig(mode=mode, bf16_levels=2).rounded_levels
        for mode in ("exact", "exact_bf16", "fast")
    }
    assert levels == {"exact": 0, "exact_bf16": 2, "fast": 0}
