"""What stands on the geometry card of a classifier: questions, numbers and figures.

The card picks numbers of the pipeline's experiments; it measures nothing itself but the agreement
of training seeds, which no experiment of the thesis asks for.
"""

from dataclasses import dataclass

__all__ = ["AGREEMENT", "EXPERIMENTS", "GROUPS", "VERSION", "Group", "Line"]

VERSION = 1
"""Of the fields of ``card.json``; it rises when one of them changes its name or its meaning."""

AGREEMENT = "seed_agreement"
"""The experiment of the card itself."""


@dataclass(frozen=True)
class Line:
    """A number of the card.

    Attributes:
        key: its field in ``card.json``.
        experiment: the experiment that measures it.
        number: what the experiment calls it.
        title: what the page calls it.
        meaning: what it is, in one sentence.
    """

    key: str
    experiment: str
    number: str
    title: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """The numbers that answer one question, with the figures that are shown beside them.

    Attributes:
        title: the question.
        lines: its numbers.
        figures: experiment and name of a figure of it; the first two that are there are shown.
    """

    title: str
    lines: tuple[Line, ...]
    figures: tuple[tuple[str, str], ...] = ()


def _distances(p: str, experiment: str, rho: str, sign: str) -> tuple[Line, ...]:
    return (
        Line(
            f"rho_{p}",
            experiment,
            f"{rho}_minimum",
            f"smallest perturbation, {sign}",
            f"mean of ||r|| / ||x|| in {sign}, of the smallest r that attacks.nearest finds",
        ),
        Line(
            f"alignment_{p}",
            experiment,
            "alignment_minimum",
            "its alignment with the normal",
            "mean cosine of r with the boundary's normal; 1 at a closest point",
        ),
        Line(
            f"deepfool_over_nearest_{p}",
            experiment,
            f"{rho}_df / {rho}_minimum",
            "DeepFool's over the smallest",
            "ratio of DeepFool's mean norm to that of attacks.nearest on the same images",
        ),
        Line(
            f"proved_over_nearest_{p}",
            "bracket",
            "lower / nearest (l2)" if p == "2" else "lower / nearest (linf)",
            "proved lower bound over the smallest",
            "mean ratio of the proved lower bound on the distance to the distance found",
        ),
    )


GROUPS = (
    Group(
        "How far is the boundary?",
        (
            *_distances("2", "attack_l2", "rho", "l2"),
            *_distances("inf", "attack_linf", "rho_inf", "linf"),
        ),
        (("attack_l2", "figure_3_5"), ("attack_l2", "norms")),
    ),
    Group(
        "Does one perturbation fool many images?",
        (
            Line(
                "universal_radius",
                "uap_main",
                "xi_l2",
                "radius of the ball, l2",
                "xi in pixel l2: a tenth of the norm that random noise needs, unless given",
            ),
            Line(
                "universal_fooling",
                "uap_main",
                "fool_val_l2",
                "unseen images fooled by one vector",
                "share of unseen images that the best universal vector of that radius fools",
            ),
            Line(
                "random_fooling",
                "uap_main",
                "fool_random_l2",
                "by a random vector of the same norm",
                "share of unseen images that a random vector of that radius fools",
            ),
        ),
        (("uap_main", "figure_4_4"), ("uap_main", "figure_4_3")),
    ),
    Group(
        "What does a random subspace change?",
        tuple(
            Line(
                f"beta_{ratio}",
                "beta_semirandom",
                f"beta_{ratio}",
                f"beta in d / {ratio} dimensions",
                "mean of ||r_S|| sqrt(m / d) / ||r|| for random subspaces S of m = d / "
                f"{ratio} dimensions; 1 where the boundary is flat",
            )
            for ratio in (4, 16, 64)
        ),
        (("beta_semirandom", "table_5_1"),),
    ),
    Group(
        "Which way does the boundary bend?",
        (
            Line(
                "curvature_closest",
                "curvature_sign",
                "median_kappa_original",
                "curvature at closest points",
                "median over images of the mean curvature at the closest boundary point",
            ),
            Line(
                "share_negative_closest",
                "curvature_sign",
                "share_negative_original",
                "negative there",
                "share of images whose mean curvature is negative at the closest point",
            ),
            Line(
                "curvature_crossing",
                "curvature_sign",
                "median_kappa_original (crossing)",
                "curvature at DeepFool's crossings",
                "the same where DeepFool's perturbation crosses the boundary",
            ),
            Line(
                "share_negative_crossing",
                "curvature_sign",
                "share_negative_original (crossing)",
                "negative there",
                "share of images whose mean curvature is negative at DeepFool's crossing",
            ),
            Line(
                "curvature_shared_first",
                "shared_directions",
                "rho_first",
                "along the first shared direction",
                "ratio rho_1 of Section 7.4: curvature along the leading direction that images "
                "share, over that along random directions",
            ),
            Line(
                "curvature_shared_last",
                "shared_directions",
                "rho_last",
                "along the last of them",
                "the same for the last shared direction",
            ),
        ),
        (("curvature_sign", "curvatures"), ("shared_directions", "figure_7_6a")),
    ),
    Group(
        "Do the regions hang together?",
        (
            Line(
                "share_connected",
                "path_connectivity",
                "share_connected",
                "pairs joined by a path",
                "share of pairs of images of a class that a path inside its region joins",
            ),
            Line(
                AGREEMENT,
                AGREEMENT,
                AGREEMENT,
                "points on which training seeds agree",
                "mean share of the points of planes through three images to which two trainings "
                "give the same class",
            ),
        ),
        (("path_connectivity", "figure_7_2"),),
    ),
    Group(
        "Are perturbed images told from clean ones?",
        (
            Line(
                "detector_auc",
                "detect_roc",
                "auc_curvature",
                "curvature detector, AUC",
                "area under the ROC curve of Algorithm 6's score, at closest points",
            ),
            Line(
                "detector_auc_confidence",
                "detect_roc",
                "auc_confidence",
                "confidence alone, AUC",
                "the same for the network's confidence",
            ),
        ),
        (("detect_roc", "figure_7_9_left"),),
    ),
)
"""All that stands on a card."""

EXPERIMENTS = tuple(
    dict.fromkeys(
        line.experiment for group in GROUPS for line in group.lines if line.experiment != AGREEMENT
    )
)
"""The experiments of the stages that the card takes numbers from."""
