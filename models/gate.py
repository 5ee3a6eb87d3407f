"""The validation points: when a tier has learned enough for the next one to open."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

OPEN, STAY, FORCED, STOP, OFF = "open", "stay", "forced", "stop", "off"
LAST_TIER = 3


@dataclass(frozen=True)
class GateSettings:
    """What the gates ask for.

    Attributes:
        thresholds: training accuracy that each tier must reach, in [0, 1].
        tolerance: how far the validation accuracy may lie below the tier's own best.
        budgets: epochs each tier may train before it is forced or the run stops.
        on_budget: "force" or "stop".
        on: False where all tiers train together from the start and no gate is asked, for comparison.
    """

    thresholds: tuple[float, ...]
    tolerance: float
    budgets: tuple[int, int, int]
    on_budget: str = "force"
    on: bool = True


@dataclass(frozen=True)
class GateDecision:
    """One decision, as it stands in gate_log.csv and in the report.

    Attributes:
        epoch: 1-based.
        tier: the tier judged, 1 to 3.
        decision: open, stay, forced or stop.
        reason: one sentence.
    """

    epoch: int
    tier: int
    decision: str
    reason: str
    train_accuracy: float
    threshold: float
    val_accuracy: float
    best_val_accuracy: float
    tolerance: float
    epochs_in_tier: int

    def as_row(self) -> dict[str, Any]:
        """Plain types, in the column order of gate_log.csv."""
        return asdict(self)


def tier_budgets(epochs: int, tier_epochs: int) -> tuple[int, int, int]:
    """Epochs each tier may train: a third of the run unless ``tier_epochs`` says so.

    The last tier's budget is the run: there is no tier to force it on to, so its gate may open until the end.
    """
    each = tier_epochs or max(1, epochs // LAST_TIER)
    return each, each, epochs


@dataclass
class Gate:
    """Decides after every epoch whether the tier in training may hand on to the next.

    The gate opens when the tier's training accuracy has reached its threshold AND the validation function agrees: the
    validation accuracy of its features is not below its own best by more than the tolerance. A tier whose epochs run
    out is forced on, or the run stops.
    """

    settings: GateSettings
    tier: int = 1
    epochs_in_tier: int = 0
    best_val_accuracy: float = 0.0
    passed: dict[int, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def begin(cls, settings: GateSettings) -> Gate:
        """The gate of a run that begins: at the first tier or, where no gate is asked, at the last."""
        if settings.on:
            return cls(settings)
        return cls(settings, tier=LAST_TIER, passed=dict.fromkeys(range(1, LAST_TIER + 1), (OFF, 0)))

    @property
    def all_open(self) -> bool:
        """True once the last tier's gate has opened too."""
        return LAST_TIER in self.passed and self.passed[LAST_TIER][0] in (OPEN, OFF)

    @property
    def spent(self) -> bool:
        """Whether the tier's epochs have run out and the run is to stop for that; a larger budget lets it go on."""
        settings = self.settings
        stops = settings.on and settings.on_budget == STOP and self.tier not in self.passed
        return stops and self.epochs_in_tier >= settings.budgets[self.tier - 1]

    def decide(
        self, epoch: int, train_accuracy: float, val_accuracy: float, *, last_epoch: bool = False
    ) -> GateDecision:
        """Judge the tier in training after ``epoch`` (1-based) and move on if it passes.

        Args:
            epoch: 1-based.
            train_accuracy: of the tier's own verdicts over the epoch, in [0, 1].
            val_accuracy: of the same tier on the validation split, in [0, 1]; NaN where there is no labelled one.
            last_epoch: the schedule ends here, whatever the budget.
        """
        self.epochs_in_tier += 1
        self.best_val_accuracy = max(self.best_val_accuracy, val_accuracy if val_accuracy == val_accuracy else 0.0)
        decision, reason = self._judge(train_accuracy, val_accuracy, last_epoch)
        verdict = GateDecision(
            epoch=epoch,
            tier=self.tier,
            decision=decision,
            reason=reason,
            train_accuracy=train_accuracy,
            threshold=self.settings.thresholds[self.tier - 1],
            val_accuracy=val_accuracy,
            best_val_accuracy=self.best_val_accuracy,
            tolerance=self.settings.tolerance,
            epochs_in_tier=self.epochs_in_tier,
        )
        if decision in (OPEN, FORCED):
            self._advance(decision, epoch)
        return verdict

    def _judge(self, train_accuracy: float, val_accuracy: float, last_epoch: bool) -> tuple[str, str]:
        if self.tier in self.passed:
            how = {OPEN: "its gate is open", FORCED: "its gate was forced", OFF: "no gate is asked (--gates off)"}
            return STAY, f"{how[self.passed[self.tier][0]]}; it trains on to the end of the schedule"
        threshold = self.settings.thresholds[self.tier - 1]
        tolerance = self.settings.tolerance
        floor = self.best_val_accuracy - tolerance
        if train_accuracy != train_accuracy:
            reason = "no labelled training image: there is no accuracy to go by"
        elif train_accuracy < threshold:
            reason = f"training accuracy {train_accuracy:.3f} is below {threshold:.3f}"
        elif val_accuracy != val_accuracy:
            reason = "no labelled validation image: the validation function cannot agree"
        elif val_accuracy < floor:
            reason = (
                f"validation accuracy {val_accuracy:.3f} is below its best {self.best_val_accuracy:.3f}"
                f" by more than {tolerance:.3f}"
            )
        else:
            return (
                OPEN,
                f"training accuracy {train_accuracy:.3f} reached {threshold:.3f}"
                f" and validation accuracy {val_accuracy:.3f} holds",
            )
        budget = self.settings.budgets[self.tier - 1]
        if self.epochs_in_tier < budget and not last_epoch:
            return STAY, reason
        spent = f"{reason}; no epoch is left after {self.epochs_in_tier} in this tier"
        return (FORCED, spent) if self.settings.on_budget == "force" else (STOP, spent)

    def _advance(self, decision: str, epoch: int) -> None:
        self.passed[self.tier] = (decision, epoch)
        if self.tier < LAST_TIER:
            self.tier += 1
            self.epochs_in_tier, self.best_val_accuracy = 0, 0.0

    def summary(self) -> dict[str, dict[str, Any]]:
        """How each tier was passed: {"tier1": {"how": "opened", "forced", "not asked", "not opened", "epoch": ...}}."""
        words = {OPEN: "opened", FORCED: "forced", OFF: "not asked"}
        passed = {tier: {"how": words[how], "epoch": epoch} for tier, (how, epoch) in self.passed.items()}
        return {f"tier{t}": passed.get(t, {"how": "not opened", "epoch": None}) for t in range(1, LAST_TIER + 1)}

    def state(self) -> dict[str, Any]:
        """What is needed to go on, in plain types."""
        return {
            "tier": self.tier,
            "epochs_in_tier": self.epochs_in_tier,
            "best_val_accuracy": self.best_val_accuracy,
            "passed": {str(tier): list(how) for tier, how in self.passed.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self.tier, self.epochs_in_tier = int(state["tier"]), int(state["epochs_in_tier"])
        self.best_val_accuracy = float(state["best_val_accuracy"])
        self.passed = {int(tier): (str(how), int(epoch)) for tier, (how, epoch) in state["passed"].items()}
