"""The files of a VM in which we keep a block: what each must become, and why one cannot. PURE."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from vmproxy import blocks, tools
from vmproxy.errors import ForeignFile
from vmproxy.guests import Guest, daemon_configs
from vmproxy.guests import files as files_of_guests
from vmproxy.model import BlockWish, Desired, Facts, File, FileChange, Finding, Mount, printable
from vmproxy.tools import Tool

DRIFT = "E_DRIFT"
IN_RAM = frozenset({"tmpfs", "ramfs", "rootfs", "overlay", "squashfs"})
MADE = ".vmproxy-made"
"""Stands in a directory of ours until the run that makes it, or takes it away, is done (change.sh)."""
_SHOWN = 3
_UNDO = frozenset({"mode", "directory"})
"""What undo needs to know beside the wish."""


def changes(facts: Facts, guest: Guest, desired: Desired) -> tuple[tuple[FileChange, ...], list[Finding]]:
    """Each file that must change, in the order of writing, and each point of drift in words.

    Raises ForeignFile for a file that cannot be replaced or in which a block would not live.
    """
    wishes = {block.path: block for block in desired.blocks}
    # What a tool has goes before the record that tells of it, and comes after: a run cut short leaves none untold.
    not_of_tools = frozenset((*files_of_guests(), *daemon_configs()))
    others = [path for path in facts.files if path not in not_of_tools and tools.owner(path)]
    made, drift = [], []
    for path in (
        *(path for path in others if path not in wishes),
        *guest.FILES,
        *(path for path in others if path in wishes),
    ):
        before = facts.files.get(path) or File(path=path, kind="absent")
        block = wishes.get(path)
        if block is None and not _ours(before):
            continue
        must_be_plain(before)
        directory = _directory(facts, guest, before)
        after = _with_block(before, block, directory=directory) if block else _without_block(before)
        if after == before:
            continue
        must_have_one_name(before)
        tool = None if path in guest.FILES else tools.owner(path)
        shell = path in (tool.SHELL if tool else guest.SHELL)
        if tool and not shell:
            _tool_objection(tool, before, after, leaving=block is None)
        elif block is not None and shell:
            _objections(facts, before, block)
        drift.append(Finding(subject=f"file {path}", ok=False, code=DRIFT, detail=_file_words(before, block)))
        made.append(FileChange(before=before, after=after, shell=shell, directory=directory))
    return tuple(made), drift


def for_tools(
    facts: Facts, names: Iterable[str], variables: Mapping[str, str], *, secret: bool, said: Collection[str]
) -> tuple[tuple[BlockWish, ...], tuple[str, ...]]:
    """The blocks of these tools, and what the user has to know of them. Raises Refused.

    One that the VM has not is refused where it is among those ``said`` now; where only the record names it, it has gone
    since then, which must not keep a hook from its main job.
    """
    made: list[BlockWish] = []
    warnings, lost = [], []
    order = tools.Order(variables=variables, secret=secret)
    for name in names:
        tool = tools.load(name)
        try:
            own = tool.render(order, facts)
        except tools.Missing as error:
            if name in said:
                raise
            warnings.append(f"{error}: it is passed over until it is there again")
            continue
        made += own
        lost += [name] if forgotten(facts, (block.path for block in own)) else []
        if wins := tool.overrides(facts):
            warnings.append(f"{name}: {wins}")
        unsaid = tool.unsaid(order)
        if unsaid:
            some = ", ".join(printable(text, limit=60) for text in unsaid[:_SHOWN])
            more = f" and {len(unsaid) - _SHOWN} more" if len(unsaid) > _SHOWN else ""
            warnings.append(f"{name} has no words for {some}{more} of no_proxy: it asks the proxy for these as well")
    if lost:
        warnings.append(f"not on a lasting disk: a reboot forgets the files of {', '.join(lost)}")
    return tuple(made), tuple(warnings)


def forgotten(facts: Facts, paths: Iterable[str]) -> tuple[str, ...]:
    """Those of the files that do not outlive a reboot, because the VM keeps them in its memory."""
    return tuple(path for path in paths if (mount := mount_of(facts, path)) is not None and mount.fstype in IN_RAM)


def mount_of(facts: Facts, path: str) -> Mount | None:
    """The mount that holds a path."""
    best = None
    for mount in facts.mounts:
        inside = mount.point == path or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _directory(facts: Facts, guest: Guest, before: File) -> bool:
    """Whether the file's directory is one that we make, or have made: undo takes it away where it is empty."""
    found = blocks.find(before.content, path=before.path) if before.content is not None else None
    if found is not None:
        return found.record.get("directory") is True
    place = before.path.rpartition("/")[0]
    unfinished = f"{place}/{MADE}" in facts.leftovers  # a run was cut short between making it and writing into it
    return place in guest.DIRECTORIES and (place not in facts.paths or unfinished)


def _ours(file: File) -> bool:
    return file.content is not None and blocks.find(file.content, path=file.path) is not None


def must_be_plain(file: File) -> None:
    """Raises ForeignFile for all else than a plain file with one name, or none (RELIABILITY T07, F38)."""
    kinds = {"link": "a symbolic link", "dir": "a directory", "other": "a device, fifo or socket"}
    if file.kind in kinds:
        raise ForeignFile(
            f"this is {kinds[file.kind]}, not a plain file", where=file.path, hint="move it away and run vmproxy again"
        )
    if file.kind == "file" and file.content is None:
        raise ForeignFile("the file cannot be read", where=file.path)


def must_have_one_name(file: File) -> None:
    """Raises ForeignFile for a file that is about to be replaced under one of its names only."""
    if file.kind == "file" and file.links > 1:
        raise ForeignFile(
            "the file has more than one hard link",
            where=file.path,
            hint="make it a file of its own and run vmproxy again",
        )


def _objections(facts: Facts, before: File, block: BlockWish) -> None:
    if before.content is None:
        return
    objections = blocks.objections(before.content, where=block.where, names=block.names, path=before.path)
    if objections:
        raise objections[0]
    syntax = facts.syntax.get(before.path)
    if syntax is not None and not syntax.parses:
        line = f":{syntax.line}" if syntax.line else ""
        raise ForeignFile(
            "the VM's shell cannot parse this file",
            where=f"{before.path}{line}",
            hint="repair it and run vmproxy again",
        )
    if syntax is not None and not syntax.tail_lives and block.where == "end":
        raise ForeignFile(
            "what is appended to this file would not be read (an open here-document?)",
            where=before.path,
            hint="close it and run vmproxy again",
        )


def must_start_again(facts: Facts, guest: Guest) -> None:
    """Raises ForeignFile where Docker, once stopped, would not start any more for what somebody wrote in its file."""
    file = facts.files.get(guest.WISH_FILE)
    if guest.WISH_FILE not in guest.SHELL or file is None:
        return
    if b"\r" not in (file.content or b""):
        return
    from vmproxy import shellharm

    for line, name in shellharm.spoiled(file.content or b""):
        raise ForeignFile(
            f"{name} has a carriage return (a line that ends in CR LF), and Docker would not start with it again",
            where=f"{file.path}:{line}",
            hint="take the carriage returns out of that file and run vmproxy again",
        )


def _tool_objection(tool: Tool, before: File, after: File, *, leaving: bool) -> None:
    text = tool.objection((before if leaving else after).content or b"", leaving=leaving)
    if text:
        raise ForeignFile(text, where=before.path, hint="repair it and run vmproxy again")


def _with_block(before: File, block: BlockWish, *, directory: bool) -> File:
    found = blocks.find(before.content, path=before.path) if before.content is not None else None
    mode = before_narrowed(before.mode, found.record.get("mode") if found else None)
    mode = mode if before.content is not None else block.mode
    extra: dict[str, object] = {"directory": True} if directory else {}
    if block.secret and mode != narrowed(mode):
        extra["mode"] = mode
        mode = narrowed(mode)
    content = blocks.put(
        before.content,
        block.payload,
        where=block.where,
        record={**block.record, **extra},
        path=before.path,
        names=block.names,
        section=block.section,
    )
    return replace(before, content=content, mode=mode, kind="file")


def narrowed(mode: int) -> int:
    """Nobody else may read a file with credentials."""
    return mode & 0o7700


def before_narrowed(mode: int, recorded: object) -> int:
    """The mode that a file had before it was narrowed, as our record in the VM says; ``mode`` itself where it says
    nothing that can be."""
    if type(recorded) is int and 0 <= recorded <= 0o7777 and mode == narrowed(recorded):
        return recorded
    return mode


def _without_block(before: File) -> File:
    assert before.content is not None  # noqa: S101 - only asked where our block was found
    found = blocks.find(before.content, path=before.path)
    mode = before_narrowed(before.mode, found.record.get("mode") if found else None)
    return replace(before, content=blocks.take(before.content, path=before.path), mode=mode)


def _file_words(before: File, block: BlockWish | None) -> str:
    if block is None:
        return "our block is still there"
    if before.content is None:
        return "the file is missing"
    found = blocks.find(before.content, path=before.path)
    if found is None:
        return "our block is missing"
    if found.payload != block.payload:
        return "our block differs"
    if {name: value for name, value in found.record.items() if name not in _UNDO} != dict(block.record):
        return "our block records another wish"
    return "our block is not where, or not as safe as, it has to be"
