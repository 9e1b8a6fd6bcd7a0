"""What a folder of results was begun with, so that nothing else goes on in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import OutputError, UsageError
from ..manifest import Manifest
from ..precision import graph_file
from .explainer import BatchConfig
from .sources import Source

__all__ = ["Plan", "explainer_digest", "plan_of", "read_plan"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The source, the explainer and the options of a folder of results, which fix its shards and what is in them.

    Attributes:
        source: as the user named it.
        kind: of the source's files.
        described: how much the source held.
        fingerprint: of its listing.
        bundle: name of the bundle.
        explainer: digest of what in the bundle has a say in the answers.
        options: by their names on the command line.
        shards: how many there are.
        version: of this record.
    """

    source: str
    kind: str
    described: str
    fingerprint: str
    bundle: str
    explainer: str
    options: dict[str, Any]
    shards: int
    version: int = _VERSION

    def refuse_other(self, other: Plan, folder: Path) -> None:
        """Refuse to go on with another plan.

        Raises:
            UsageError: it says what is not the same.
        """
        begun = f"'{folder}' was begun with"
        after = "; go on with that, write into another folder, or begin anew with --restart"
        if self.version != other.version:
            raise UsageError(f"{begun} another version of Saccade, whose plans are laid out otherwise{after}")
        if self.explainer != other.explainer:
            raise UsageError(f"{begun} another bundle, '{self.bundle}'{after}")
        for name in sorted(self.options.keys() | other.options.keys()):
            then, now = self.options.get(name), other.options.get(name)
            if then != now:
                raise UsageError(f"{begun} {_option(name, then)} and now it is {_option(name, now)}{after}")
        if (self.kind, self.fingerprint) != (other.kind, other.fingerprint):
            change = (
                f"it had {self.described} and has {other.described}"
                if self.described != other.described
                else "a file has another name or size"
            )
            raise UsageError(f"{begun} the source '{self.source}' as it was, and it has changed: {change}{after}")

    def as_json(self) -> bytes:
        """As it is stored."""
        return (json.dumps(asdict(self), indent=2, ensure_ascii=True) + "\n").encode()


def plan_of(
    spec: str, source: Source, manifest: Manifest, config: BatchConfig, *, precision: str, **options: Any
) -> Plan:
    """The plan of a source with a bundle.

    Args:
        spec: as the user named the source.
        source: the source.
        manifest: of the bundle.
        config: what is asked.
        precision: of the bundle's graph.
        options: more that has a say in the shards or the answers, by their names on the command line.
    """
    pipeline, query = config.pipeline, config.pipeline.query
    chosen = {
        "target": list(pipeline.targets),
        "areas": list(query.areas) if query else None,
        "size": list(query.size) if query and query.size else None,
        "mask": config.mask,
        "top": config.top,
        "max-megapixels": pipeline.max_pixels / 1e6,
        "precision": precision,
        "overlays": True if config.overlays else None,  # which finished shards would not get later
    }
    return Plan(
        source=spec.encode("utf-8", "backslashreplace").decode(),
        kind=source.kind,
        described=source.described,
        fingerprint=source.fingerprint,
        bundle=manifest.name,
        explainer=explainer_digest(manifest, precision),
        options=chosen | options,
        shards=len(source.shards),
    )


def explainer_digest(manifest: Manifest, precision: str) -> str:
    """Of what in a bundle has a say in the answers; settings of engines and other precisions have not."""
    said = manifest.model_dump(mode="json", include={"image", "any_size", "class_names", "areas", "class_specific"})
    said["graph"] = manifest.files[graph_file(precision)].sha256
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        return Plan(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(
            f"the plan '{file}' cannot be read ({str(error).splitlines()[0]}); begin anew with --restart"
        ) from None


def _option(name: str, value: Any) -> str:
    return f"--{name} {json.dumps(value)}" if value is not None else f"no --{name}"
