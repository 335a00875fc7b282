"""commit.sh's last word as an error of ours, and in words. PURE."""

from __future__ import annotations

import re

from vmproxy import preview
from vmproxy.errors import Busy, LostContact, NoProxy, Refused, RolledBack, VmproxyError
from vmproxy.machines import Outcome
from vmproxy.managed import DRIFT
from vmproxy.model import Finding, printable

# What iptables-restore says before the reason: "iptables-nft-restore v1.8.9 (nf_tables): ", "Warning: ".
_NOISE = re.compile(r"\biptables\S*-restore(?: v[\d.]+)?(?: \(\w+\))?: |\bWarning: ")


def short(text: str) -> str:
    """At most 120 characters, the middle left out: the reason stands at the end, iptables' in front, and what state
    is left comes behind."""
    text = _NOISE.sub("", text)
    return text if len(text) <= 120 else f"{text[:68]}…{text[-51:]}"


def running(count: str) -> str:
    """How many containers run, in words."""
    return "1 container runs" if count == "1" else f"{count} containers run"


def meanwhile(outcome: Outcome, failed: Finding | None) -> bool:
    """Whether somebody else wrote while we did (our own boot script, beside Docker's start): then it is worth
    another look."""
    return outcome.status == "moved" or (outcome.status == "undone" and failed is not None and failed.code == DRIFT)


def failure(outcome: Outcome, failed: Finding | None, hidden: tuple[str, ...]) -> VmproxyError:
    """What commit.sh's last word means as an error."""
    text = short(preview.redact(outcome.text, hidden))
    log = preview.redact(outcome.log, hidden)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    if outcome.status == "incomplete":
        hint = "vmproxy status, then vmproxy remove"
        return RolledBack(f"ROLLBACK INCOMPLETE: {text}", hint=hint, complete=False)
    if outcome.status == "busy" or outcome.exit == Busy.exit:
        hint = "try again, or --lock-timeout S" if outcome.status == "busy" else ""
        return _stopped(Busy(text, hint=hint), outcome, untouched="")
    if failed is not None and outcome.status == "refused":
        return NoProxy(failed.detail, hint=failed.hint or "--no-check")
    if failed is not None and outcome.status == "undone":
        return RolledBack(
            f"{short(failed.detail)}; everything was put back", where=failed.subject, hint=failed.hint or "--keep"
        )
    if outcome.exit == Refused.exit:
        return _stopped(Refused(text), outcome, untouched="; nothing was changed")
    if outcome.exit == LostContact.exit:
        return _stopped(LostContact(text), outcome, untouched="; everything was put back")
    tail = f" (its log ends: {printable(last, limit=100)})" if last else ""
    return RolledBack(f"{text}{tail}; everything was put back")


def _stopped(error: VmproxyError, outcome: Outcome, *, untouched: str) -> VmproxyError:
    """With what became of the VM."""
    error.rolled_back = outcome.rolled_back
    error.what += "; everything was put back" if outcome.rolled_back else untouched
    return error
