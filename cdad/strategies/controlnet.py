"""The paper's ablation with a ControlNet in place of the anomaly-masked network."""

from __future__ import annotations

from .projection import CDAD

_COPY = "control."


class ControlNet(CDAD):
    """``cdad`` on a denoiser whose condition is a ControlNet's (Zhang et al., ICCV 2023), with no L_amn: its hint is the
    perturbed image, it adds to the U-Net's skip connections and middle block, and it begins as a copy of the U-Net's
    encoder. The U-Net trains with it, as it does with the anomaly-masked network (paper, Table 5), and is not locked: from
    the first increment on, projection guards the weights of both."""

    def before_task(self, model, classes, index, step, progress):
        if index == 0 and step == 0:
            shapes = model.params.shapes()
            for name in shapes:
                original = f"unet.{name.removeprefix(_COPY)}"
                if name.startswith(_COPY) and original in shapes:
                    model.params[name] = model.params[original]
            if model.config.training.ema_decay > 0:
                model._trainer.set_block("ema", model._trainer.block("weights"))
        super().before_task(model, classes, index, step, progress)
