"""Figures that were published, printed beside ours."""

from schemas.base import Frozen

GOYAL = (
    "Goyal, Mohapatra, Parikh and Batra 2016, Towards Transparent AI Systems: Interpreting Visual "
    "Question Answering Models"
)


class Figure(Frozen):
    """A mean and its standard error, where one is printed."""

    mean: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if self.error is not None else "")


TABLE_1 = {
    "random": Figure(mean=0.000, error=0.001),
    "occlusion": Figure(mean=0.173, error=0.004),
    "guided_backprop": Figure(mean=0.292, error=0.004),
    "human": Figure(mean=0.623, error=0.003),
}
"""Rank correlation with human attention: 1374 questions of VQA-HAT's validation part, the model
Deeper LSTM + norm I (Table 1)."""

FAILURE_ACCURACY = 0.72
"""How often success or failure is predicted rightly from the share of occlusions that change the
answer (section 4.2)."""

WITH_OCCLUSION = {
    "grad_cam": Figure(mean=0.60),
    "guided_backprop": Figure(mean=0.42),
}
"""Rank correlation of maps with occlusion maps, same model (Selvaraju et al. 2017, Grad-CAM)."""
