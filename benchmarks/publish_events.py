"""Add the single-event probes of a run of script 3 to probes that are published already.

    python benchmarks/publish_events.py results/m15p8_events/probes.npz checkpoint/probes.npz

Both must rest on the same encoder, block and scaling. So the events of
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
    load_montages,
    load_probes,
    load_step_probes,
    publish,
    save_probes,
)
from pedsleepmae.probe.tables import split_layer

SAME = ("encoder_sha256", "scaling")


def main(source: Path, target: Path) -> None:
    pooling, probes = load_probes(target)
    basis, found = load_basis(target), load_basis(source).facts
    layers = [split_layer(name)[1] for name in (pooling, load_probes(source)[0])]
    for name in SAME:
        if basis.facts[name] != found[name]:
            sys.exit(f"{name} differs: {basis.facts[name]} there, {found[name]} in {source}")
    if layers[0] != layers[1]:
        sys.exit(f"block {layers[0]} is read there, {layers[1]} in {source}")
    basis = replace(basis, facts=basis.facts | {"events": found["events"]})
    save_probes(source.with_name("published.npz"), pooling, probes, basis, load_montages(target),
                load_step_probes(source))  # fmt: skip
    publish(source.with_name("published.npz"), target)
    print(f"{target}: {', '.join(load_step_probes(target))}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
