"""Make labelled tasks out of the AWS API reference, for fine-tuning.

`scaler labels --out data/labels` writes service/*.jsonl (which service does a text describe? The services' own names
are taken out of it) and names/*.conll (which words of a text are operations, parameters and values? Its markup says
so). `scaler finetune` reads both.
"""

from __future__ import annotations

from data_prep.labelling.tasks import SENTENCES_A_SERVICE, SERVICES, TEXTS_A_SERVICE
from data_prep.pipeline.options import add_out
from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("labels", __doc__)
    add_out(made)
    for name, default, meaning in (
        ("services", SERVICES, "services to tell apart, the largest"),
        ("texts_a_service", TEXTS_A_SERVICE, "texts of a service at most"),
        ("sentences_a_service", SENTENCES_A_SERVICE, "sentences of a service at most"),
    ):
        explained = f"{meaning} (default: %(default)s)"
        made.add_argument(f"--{name}", type=at_least(1), default=default, metavar="N", help=explained)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.labelling.tasks import make, render

    written = make(arguments.out, arguments.services, arguments.texts_a_service, arguments.sentences_a_service)
    print(f"{arguments.out} {'written' if written else 'is up to date'}\n{render(arguments.out)}")


if __name__ == "__main__":
    main()
