import torch

from benchmarks.machine import describe, slug
from benchmarks.report import markdown

SPREAD = {"min": 3.9, "median": 4.0, "max": 4.25}
RESULTS = {
    "network": "mnist5k_lenet",
    "machine": {
        "device": "A Processor",
        "cpus": 2,
        "threads": 2,
        "load_average": [0.1, 0.2, 0.3],
        "python": "3.11",
        "torch": "2",
    },
    "missing": ["ART"],
    "comparisons": {
        "No clipping": [
            {
                "name": "foolbox 3.3.4",
                "images": 512,
                "batch": 128,
                "images_per_second": 70.04,
                "ratio": SPREAD,
                "forward": 38.0,
                "backward": 37.0,
                "mean_norm": 1.4986,
                "success": 1.0,
                "note": "wide",
            },
        ]
    },
    "bound": {
        "images": 512,
        "batch": 128,
        "mean_steps": 2.6,
        "jacobians_per_second": 1000.0,
        "fastest_jacobian": "is_grads_batched",
        "share_of_bound": {"min": 0.9, "median": 0.95, "max": 1.0},
    },
    "universal": {
        "images": 200,
        "unseen": 1000,
        "radius": 3.9474,
        "passes": 5,
        "shufflings": 5,
        "ways": [
            {
                "name": "batch_size=32",
                "seconds": SPREAD,
                "gain": {"x": SPREAD},
                "fooled": 0.5,
                "unseen": 0.4,
            }
        ],
        "bound": {"visits": SPREAD, "share": SPREAD, "share_of_free_looks": SPREAD},
        "art": {"images": 100, "passes": 2, "rounds": 0, "version": None, "ways": []},
    },
    "curvature": {
        "profile": {
            "dimension": 784,
            "gradients": 1568,
            "fastest_plain": "plain, 128 at once",
            "seconds": {"Hessian": SPREAD, "eigenvalues": SPREAD},
            "share_of_plain_rate": {"min": 0.91, "median": 0.97, "max": 1.1},
        },
        "leading": {
            "dimension": 3072,
            "count": 10,
            "softplus": {
                "gradients": 256,
                "full_gradients": 6144,
                "share": 1 / 24,
                "largest_gap": 1e-6,
            },
            "relu": {"gradients": 256, "full_gradients": 6144, "share": 1 / 24, "largest_gap": 0.5},
        },
        "memory": {"images": [2, 6], "rise_mib": 0.25, "hessian_mib": 4.69},
    },
    "subspaces": {
        "dimension": 784,
        "plain_seconds": SPREAD,
        "step_over_plain": {"m = 8": SPREAD},
        "drawing_seconds": {"drawing, m = 8": SPREAD},
    },
    "cure": {
        "lenet": {
            "batch": 64,
            "seconds": {"plain step": SPREAD, "CURE step": SPREAD, "PGD(10) step": SPREAD},
            "passes": {"gradient at x": SPREAD},
            "of_plain": SPREAD,
            "of_pgd": {"min": 0.4, "median": 0.5, "max": 0.6},
            "of_passes": SPREAD,
        }
    },
    "detection": {
        "images": 1000,
        "directions": 10,
        "forward": 39.0,
        "backward": 9.0,
        "passes_needed": 50,
        "fastest_plain": "256 at once",
        "seconds": SPREAD,
        "plain_seconds": SPREAD,
        "ratio": {"min": 0.97, "median": 1.03, "max": 1.2},
    },
}


def test_report_shows_ratios_with_spread_counts_and_what_is_missing():
    lines = markdown(RESULTS).splitlines()
    (row,) = [line for line in lines if line.startswith("| foolbox")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "foolbox 3.3.4",
        "512",
        "128",
        "70.0",
        "4.00 (3.90 to 4.25)",
        "38.00",
        "37.00",
        "1.4986",
        "100.0%",
        "wide",
    ]
    assert (
        "foolbox 3.3.4 takes **4.00** times as long (3.90 to 4.25), at a mean norm +0.00% of ours."
        in lines
    )
    assert "ART: not installed: not measured." in lines
    assert any("**95%** (90% to 100%)" in line for line in lines)
    assert any("**97%** (91% to 110%)" in line for line in lines)
    assert any("256 gradients, **1/24.0** of the full profile's 6144" in line for line in lines)
    assert any(
        "**1.03** (0.97 to 1.20) times the 50 plain forward passes" in line for line in lines
    )
    assert any("m = 8 4.00 times (3.90 to 4.25)" in line for line in lines)
    assert any(
        line.startswith("| lenet | 4000 ms") and "0.50 (0.40 to 0.60)" in line for line in lines
    )
    assert "| batch_size=32 | 4.00 | 4.00 (3.90 to 4.25) | 50.0% | 40.0% |" in lines


def test_a_run_of_one_part_has_a_report():
    kept = ("network", "machine", "missing", "detection")
    lines = markdown({name: RESULTS[name] for name in kept}).splitlines()
    assert "## Detection" in lines
    assert not any("Curvature" in line or "bound" in line for line in lines)
    machines = {"detection": RESULTS["machine"] | {"threads": 1}}
    lines = markdown(RESULTS | {"machines": machines}).splitlines()
    assert len([line for line in lines if line.startswith("Measured by itself: 1 thread of")]) == 1


def test_machine_is_named():
    machine = describe(torch.device("cpu"))
    assert machine["device"]
    assert machine["threads"] == torch.get_num_threads()


def test_slug():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("AMD EPYC (TM) 7B13 @ 2.2 GHz") == "amd-epyc-tm-7b13-2-2-ghz"
