"""A small ledger: four renders of three stages in a day, for a store."""

from __future__ import annotations

from packshot.ledger.records import Dimensions, Outcome, Settled, Stamped
from packshot.ledger.reports.period import DAY_US

DAY = 20_400 * DAY_US  # 2025-11-08


def entry(
    number: int,
    stage: str,
    amount: int,
    *,
    render: str = "",
    at: int = DAY,
    outcome: Outcome = "succeeded",
    account: str = "",
    provider: str = "",
    model: str = "",
    team: str = "red",
    reason: str = "",
    priced: bool = True,
    corrects: str = "",
) -> Stamped:
    settled = Settled(
        attempt=f"attempt-{number}",
        number=number,
        held_at=at,
        dispatched_at=at,
        settled_at=at + 1_000_000,
        outcome=outcome,
        reason=reason,
        dimensions=Dimensions(
            render=render, stage=stage, provider=provider, model=model, team=team, tags=("a=b",)
        ),
        seconds_us=1_000_000,
        account=account or stage,
        amount=amount,
        payable=amount,
        priced=priced,
        currency="USD" if provider else "EUR",
        rate="0.5" if provider else "1",
        corrects=corrects,
    )
    return Stamped("w", 1, number, settled)


def world() -> list[Stamped]:
    """Four renders, the last of which failed in its caption and was billed."""
    rows: list[Stamped] = []
    for k in range(3):
        for stage, amount in (("caption", 200_000), ("denoise", 800_000), ("store", 0)):
            rows.append(
                entry(
                    len(rows) + 1,
                    stage,
                    amount,
                    render=f"r{k}-id",
                    provider="openai" if stage == "caption" else "",
                    model="gpt-4o" if stage == "caption" else "",
                    team="blue" if k == 2 else "red",
                )
            )
    rows.append(
        entry(
            10,
            "caption",
            100_000,
            render="x-id",
            provider="openai",
            model="gpt-4o",
            outcome="failed_billed",
            account="waste",
            reason="timeout",
        )
    )
    rows.append(entry(11, "chat", 0, provider="openai", model="new", priced=False))
    rows.append(entry(12, "denoise", 400_000, render="old", at=DAY - DAY_US))
    rows.append(entry(13, "store", 0, render="old", at=DAY - DAY_US))
    return rows
