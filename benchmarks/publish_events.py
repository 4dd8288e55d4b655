"""Add the single-event probes of a run of script 3 to probes that are published already.

    python benchmarks/publish_events.py results/m15p8_events/probes.npz checkpoint/probes.npz

Both must rest on the same encoder and scaling. So the events of
configs/m15p8_simulated/events.yaml, judged on children of their own, join the probes of epochs and
of montages of configs/m15p8_simulated/probe.yaml.
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae.probe.files import (
    load_basis,
    load_event_probes,
    load_montages,
    load_probes,
    publish,
    save_probes,
)

SAME = ("encoder_sha256", "scaling")


def main(source: Path, target: Path) -> None:
    read_outs, probes = load_probes(target)
    basis, found = load_basis(target), load_basis(source).facts
    for name in SAME:
        if basis.facts[name] != found[name]:
            sys.exit(f"{name} differs: {basis.facts[name]} there, {found[name]} in {source}")
    if (event_probes := load_event_probes(source)) is None:
        sys.exit(f"{source} holds no probes of single events; run script 3 with --events true")
    basis = replace(basis, facts=basis.facts | {"events": found["events"]})
    joined, montages = source.with_name("published.npz"), load_montages(target)
    save_probes(joined, read_outs, probes, basis, montages, event_probes)
    publish(joined, target)
    for montage, by_kind in event_probes.by_montage.items():
        print(f"{target}: single events, {montage}: {', '.join(by_kind)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
