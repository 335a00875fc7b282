"""The error tree. Each error is one line (what, where), a hint and an exit code.

::

    VmproxyError                 70  E_BUG            (base; never raised as it is)
    ├── UsageError                2  E_USAGE          wrong option, URL, no_proxy, name
    ├── DecisionNeeded            3  E_DECISION       the user has to say something first
    ├── Unreachable               4  E_UNREACHABLE    cannot reach the VM
    │   └── Untrusted             4  E_HOSTKEY        its host key is not the one known
    ├── NotPermitted              5  E_NOT_PERMITTED  authentication, sudo
    ├── Refused                   6  E_REFUSED        a precondition does not hold; nothing was changed
    │   ├── NoGateway             6  E_GATEWAY        no single gateway can be chosen
    │   ├── NoProxy               6  E_PROXY          no proxy answers where one should
    │   └── ForeignFile           6  E_FILE           somebody else's file cannot carry our block
    ├── RolledBack                7  E_ROLLED_BACK    failed, and put back
    ├── Busy                      8  E_BUSY           another run, or another program, holds a lock
    └── LostContact               9  E_LOST           contact lost or a time limit passed

Exit 1 (drift, a failed leg) is a finding, not an error, and 128+n is a signal.
"""

from __future__ import annotations


class VmproxyError(Exception):
    """Base of everything vmproxy raises on purpose.

    ``what`` is one present-tense line without secrets, ``where`` the object (path, host, rule),
    ``hint`` one command or option that helps. Text that came from a VM must be made printable
    (``vmproxy.model.printable``) before it goes in here.
    """

    exit: int = 70
    code: str = "E_BUG"
    usual_hint: str = ""
    """The hint where nobody gives a better one."""
    rolled_back: bool = False
    """Whether a change was begun in the VM, and all of it was put back."""

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


class UsageError(VmproxyError):
    """A wrong option, URL, list or name."""

    exit = 2
    code = "E_USAGE"
    usual_hint = "vmproxy COMMAND --help"


class DecisionNeeded(VmproxyError):
    """The user has to decide something first."""

    exit = 3
    code = "E_DECISION"


class Unreachable(VmproxyError):
    """The VM cannot be reached."""

    exit = 4
    code = "E_UNREACHABLE"
    usual_hint = "is the VM running?"


class Untrusted(Unreachable):
    """The VM's host key is not the one known; raised before any authentication."""

    code = "E_HOSTKEY"


class NotPermitted(VmproxyError):
    """Authentication or sudo was refused."""

    exit = 5
    code = "E_NOT_PERMITTED"


class Refused(VmproxyError):
    """A precondition does not hold; nothing was changed."""

    exit = 6
    code = "E_REFUSED"
    usual_hint = "vmproxy status shows how the VM stands"


class NoGateway(Refused):
    """No single gateway can be chosen; ``candidates`` are printable lines."""

    code = "E_GATEWAY"

    def __init__(self, what: str, *, where: str = "", hint: str = "", candidates: tuple[str, ...] = ()) -> None:
        super().__init__(what, where=where, hint=hint)
        self.candidates = candidates


class NoProxy(Refused):
    """No proxy answers where one should."""

    code = "E_PROXY"


class ForeignFile(Refused):
    """Somebody else's file cannot carry our block; it was left untouched."""

    code = "E_FILE"


class RolledBack(VmproxyError):
    """A step failed and everything was put back; ``complete`` False: not everything, and the text says what is left."""

    exit = 7
    code = "E_ROLLED_BACK"
    usual_hint = "vmproxy status shows how the VM stands"

    def __init__(self, what: str, *, where: str = "", hint: str = "", complete: bool = True) -> None:
        super().__init__(what, where=where, hint=hint)
        self.complete = self.rolled_back = complete


class Busy(VmproxyError):
    """Another run, or another program, holds a lock."""

    exit = 8
    code = "E_BUSY"
    usual_hint = "try again"


class LostContact(VmproxyError):
    """Contact was lost or a time limit passed; the text says what state is left."""

    exit = 9
    code = "E_LOST"
    usual_hint = "vmproxy status shows how the VM stands"


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end: exit 128 + ``number``.

    Not a :class:`VmproxyError`, so that no retry loop takes it for a failure of the VM; whoever has something to put
    back catches ``KeyboardInterrupt`` (or ``BaseException``), puts it back, and raises it again. ``rolled_back``: a
    change was begun in the VM, and all of it was put back; ``changed``: one that was made before stays.
    """

    code = "E_INTERRUPTED"

    def __init__(self, number: int, *, what: str = "interrupted", rolled_back: bool = False) -> None:
        super().__init__(what)
        self.number = number
        self.exit = 128 + number
        self.rolled_back = rolled_back
        self.changed = False
        self.what = what
        self.where = self.hint = ""

    def stays(self, what: str) -> None:
        """``what`` was done before the signal came, and is not put back."""
        self.changed, self.rolled_back = True, False
        self.what, self.hint = f"interrupted; {what}", "vmproxy status"
