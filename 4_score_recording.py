"""Recordings to sleep stages, events and a summary of each night. No medical device.

    python 4_score_recording.py RECORDING.edf --paths.checkpoint runs/m15p8/checkpoint_best.pt \\
        --paths.probes results/m15p8/probes.npz
    python 4_score_recording.py FOLDER MORE.edf 'study*/x_*.edf'

Writes <paths.output_dir>/<recording>/: epochs.csv (stages, events and probabilities of each 30-s
epoch), summary.json and summary.csv, annotations.edf (EDF+, for EDFbrowser and MNE),
hypnogram.json (for YASA), <recording>_events.tsv with its .json (as in BIDS) and report.html.
Epochs unlike the training data are flagged. Where a scorer's annotations lie beside the recording,
the agreement with them is shown.

Of a folder, a pattern or several files it also writes nights.csv: a row for each recording, of one
that could not be scored with the reason. Interrupt it whenever you like: run it again and it goes
on.
"""

import sys

from pedsleepmae.score.__main__ import main as score


def main(argv: list[str]) -> int:
    return score(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
