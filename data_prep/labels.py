"""Labelled tasks out of the AWS API reference: `python -m data_prep.labels --out data/labels`.

service/*.jsonl: which service does a text describe? The services' own names are taken out of it.
names/*.conll: which words of a text are operations, parameters and values? Its markup has said so.
`python -m scaler.finetune` reads both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.labelling.tasks import KIND, SENTENCES_A_SERVICE, SERVICES, TEXTS_A_SERVICE, make
from scaler.core.cli import command
from scaler.core.files import read_manifest


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--services", type=int, default=SERVICES, help=f"to tell apart, the largest ({SERVICES})")
    most = f"of a service at most ({TEXTS_A_SERVICE})"
    parser.add_argument("--texts_a_service", type=int, default=TEXTS_A_SERVICE, help=most)
    most = f"of a service at most ({SENTENCES_A_SERVICE})"
    parser.add_argument("--sentences_a_service", type=int, default=SENTENCES_A_SERVICE, help=most)
    arguments = parser.parse_args()
    limits = (arguments.services, arguments.texts_a_service, arguments.sentences_a_service)
    written = make(arguments.out, *limits)
    content = read_manifest(arguments.out, KIND)
    print(f"{arguments.out} {'written' if written else 'is up to date'}")
    for task, splits in content["tasks"].items():
        sizes = ", ".join(f"{split} {entry['examples']:,}" for split, entry in splits.items())
        print(f"  {task}: {sizes}; {content['repeats_left_out'][task]:,} repeats left out")
    for name, share in content["accuracy_of_rules"].items():
        print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main()
