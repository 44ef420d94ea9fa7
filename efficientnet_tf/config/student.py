"""Settings of learning from another network: Noisy Student and distillation."""

import dataclasses
from typing import Literal

from efficientnet_tf.config import checks
from efficientnet_tf.config.data import check_source


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """What is learnt from a teacher, in one of two ways.

    Noisy Student (Q. Xie et al., 2019, arXiv:1911.04252): `teacher` labels the pictures of
    `unlabeled` once, without augmentation; the student learns from these and from the labelled
    ones together, augmented as the other sections say. Distillation (G. Hinton et al., 2015,
    arXiv:1503.02531): the teacher of `distill` sees every augmented picture that the student sees,
    and the student learns its answers (L. Beyer et al., 2021, arXiv:2106.05237).

    Attributes:
        teacher: a run's folder, a .keras file, a run's .weights.h5 file, or a published network,
            "VARIANT" or "VARIANT:WEIGHTS"; its classes must be those of the labelled pictures.
        unlabeled: pictures, named as for `data.source`; labels are not looked at. Those that are
            the same as one of the validation or test split are left out.
        labels: "soft" keeps the teacher's probabilities; "hard" gives a picture the most likely
            class. `train.label_smoothing` is for labelled pictures and hard labels.
        threshold: lowest probability of the most likely class with which a picture is used.
        per_class: pictures of each class, by their most likely one. Of a class that has more, those
            with the highest probability are used; the pictures of a class that has fewer count
            several times (the paper: 130,000). None to use each picture once.
        ratio: unlabelled pictures for each labelled one (the paper: 14 for L2; its released
            scripts: 1 for B0, 3 for B1 to B7). An epoch has every labelled picture once.
        distill: a teacher to distil, named as `teacher`.
        temperature: that both networks' logits are divided by to compare them.
        alpha: weight of the teacher's answers in the loss; the labels' is 1 - alpha.
    """

    teacher: str | None = None
    unlabeled: str | None = None
    labels: Literal["soft", "hard"] = "soft"
    threshold: float = 0.3
    per_class: int | None = None
    ratio: int = 1
    distill: str | None = None
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if (self.teacher is None) != (self.unlabeled is None):
            raise ValueError(
                "student.teacher labels the pictures of student.unlabeled: give both (or"
                " student.distill alone, to learn from a teacher on the labelled pictures)."
                f" Received: student.teacher={self.teacher!r}, student.unlabeled={self.unlabeled!r}"
            )
        if self.teacher is not None and self.distill is not None:
            raise ValueError(
                "student.teacher and student.distill are two ways to learn from a teacher: give"
                f" one. Received: student.teacher={self.teacher!r},"
                f" student.distill={self.distill!r}"
            )
        if self.unlabeled is not None:
            check_source("student.unlabeled", self.unlabeled)
        checks.within("student", self, ("threshold",), 0, 1)
        checks.within("student", self, ("per_class", "ratio"), 1, float("inf"))
        checks.check(self.temperature > 0, "student.temperature", "> 0", self.temperature)
        checks.check(0 < self.alpha <= 1, "student.alpha", "in (0, 1]", self.alpha)
        noisy = ("labels", "threshold", "per_class", "ratio")
        checks.only_with("student", self, self.teacher is not None, noisy, "student.teacher")
        distilling = self.distill is not None
        checks.only_with("student", self, distilling, ("temperature", "alpha"), "student.distill")
