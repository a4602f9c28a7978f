# SPDX-License-Identifier: Apache-2.0
"""SCAFFOLD: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.

Control variates live as long as a session: whoever goes on after a stop begins with zeros, at the server and at every
site. A site takes its new control over only once it knows that the server counted it (``settle``), so c stays the
weighted mean of the sites' controls whoever drops out, and whenever.

What it costs in privacy. A site's new control follows from its update and its number of steps: dc = -c - dy / (T lr).
Where all sites make the same number of steps, the sum of controls follows from the sum of updates, and the server
learns no more than under FedAvg. Otherwise, or where updates are scaled down to a norm (their controls are not), they
are different sums of the same updates: of two honest sites the server and a colluding third would work out each. So
under masks either needs the plan's consent ``second_sum_of_updates`` and three honest sites at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from fairflare.fairness.groups import Floats
from fairflare.methods.base import (
    SECOND_SUM,
    UPDATE,
    Assignment,
    Contribution,
    Correction,
    Method,
    MethodParameters,
    Part,
    ServerHalf,
    Setting,
    SiteHalf,
    Vector,
    Work,
    moved,
)

CONTROLS: Final = "controls"


class ScaffoldParameters(MethodParameters):
    """Parameters of SCAFFOLD. With controls of zero it is FedAvg.

    ``global_lr``: the server's step on the mean update (1 in the paper's experiments). ``correction``: the control
    enters the gradient (``gradient``, as in the paper), or is applied after the optimiser's step (``after_step``, as
    the FlexFair authors and FLARE do; the same for plain SGD). ``control_lr``: learning rate in the new control,
    ``null`` for the optimiser's own. ``control_clip``: largest change of one coordinate of a control in one round;
    beyond it changes are cut off.
    """

    name: Literal["scaffold"]
    global_lr: Annotated[float, Field(gt=0, le=1000)]
    correction: Literal["gradient", "after_step"]
    control_lr: Annotated[float, Field(gt=0)] | None
    control_clip: Annotated[float, Field(ge=2**-20, le=2**20)]

    @property
    def settles(self) -> bool:
        """A control is taken over only where the update that made it was counted."""
        return True

    def conflicts(self, setting: Setting) -> Iterator[str]:
        """Optimisers whose steps are no gradients, and sums that would show more than FedAvg's."""
        plain = setting.optimizer == "sgd" and setting.momentum == 0
        if self.control_lr is None and not plain:
            got = setting.optimizer if setting.optimizer != "sgd" else f"sgd with momentum {setting.momentum:g}"
            yield (
                f"got scaffold with {got}, expected sgd with momentum 0: a control is the mean gradient of a round, "
                "which (x - y) / (T lr) is for plain steps only"
            )
        if setting.masked and setting.optimizer != "sgd" and self.correction == "gradient":
            yield (
                f"got scaffold under masks whose correction enters {setting.optimizer}, expected correction "
                "'after_step': a step is then nearly the sign of gradient and control, so a server that chooses "
                "controls could compare each site's gradient with them"
            )
        if setting.masked and (setting.norm_clip or not setting.same_steps):
            got = "norm_clip" if setting.norm_clip else "numbers of local steps that depend on a site's records"
            what = "the sums of updates and of controls are then two different sums of the same updates"
            if SECOND_SUM not in setting.consents:
                yield (
                    f"got scaffold under masks with {got}, expected the same steps at all sites (work in steps, or "
                    f"batch in batches_per_epoch) and norm_clip null, or the consent '{SECOND_SUM}': {what}"
                )
            if setting.honest < 3:
                yield (
                    f"got scaffold under masks with {got} and {setting.honest} honest sites (min_sites - colluders), "
                    f"expected at least 3: {what}, from which the server and its colluders would work out each of two"
                )


class ScaffoldSite(SiteHalf):
    """Local steps y <- y - lr (g - c_s + c), then c_s <- c_s - c + (x - y) / (T lr) (algorithm 1, option II)."""

    def __init__(self, parameters: ScaffoldParameters) -> None:
        self._parameters = parameters
        self.control: Floats | None = None
        self._pending: Floats | None = None
        self._server: Vector | None = None

    def begin(self, assignment: Assignment) -> Correction:
        """The shift c - c_s of every gradient."""
        self._server = assignment.inputs[CONTROLS]
        if self.control is None:
            self.control = np.zeros(self._server.size)
        shift = (self._server.astype(np.float64) - self.control).astype(np.float32)
        return Correction(shift=shift, after_step=self._parameters.correction == "after_step")

    def finish(self, work: Work) -> Contribution:
        """The update, and by how much the control would change."""
        if self._server is None:
            raise RuntimeError("finish() before begin()")
        rate = self._parameters.control_lr or work.lr
        change = -self._server.astype(np.float64) - work.update.astype(np.float64) / (work.steps * rate)
        # Masks would cut it off as well; here it is the same without them.
        change = np.clip(change, -self._parameters.control_clip, self._parameters.control_clip)
        return Contribution({UPDATE: work.update, CONTROLS: change.astype(np.float32)})

    def sent(self, parts: Mapping[str, Floats]) -> None:
        """Keep the change as it is in the sum: only so is c the mean of the c_s."""
        self._pending = parts[CONTROLS]

    def settle(self, counted: bool) -> None:
        """Take the change over if it was counted; otherwise it never was."""
        if counted and self._pending is not None and self.control is not None:
            self.control = self.control + self._pending
        self._pending = None


class ScaffoldServer(ServerHalf):
    """x <- x + lr_g mean dy; c <- c + share mean dc, where share is S / N for equal weights (algorithm 1)."""

    def __init__(self, parameters: ScaffoldParameters, length: int) -> None:
        self._parameters = parameters
        self.control: Floats = np.zeros(length)

    def inputs(self) -> Mapping[str, Vector]:
        """The control c, rounded to float32."""
        return {CONTROLS: self.control.astype(np.float32)}

    def step(self, model: Vector, means: Mapping[str, Floats], share: float) -> Vector:
        """Move model and control."""
        self.control = self.control + share * means[CONTROLS]
        return moved(model, self._parameters.global_lr * means[UPDATE])


class Scaffold(Method, of=ScaffoldParameters):
    """Client drift corrected by control variates; controls are weighed as updates are (algorithms section 5)."""

    parameters: ScaffoldParameters

    def parts(self, parameters: int) -> Mapping[str, Part]:
        """The change of the control, as long as the update."""
        return {CONTROLS: Part(parameters, self.parameters.control_clip)}

    def inputs(self, parameters: int) -> Mapping[str, int]:
        """The server's control."""
        return {CONTROLS: parameters}

    def at_site(self) -> SiteHalf:
        """A site's control, zero at first."""
        return ScaffoldSite(self.parameters)

    def at_server(self, parameters: int) -> ServerHalf:
        """The server's control, zero at first."""
        return ScaffoldServer(self.parameters, parameters)
