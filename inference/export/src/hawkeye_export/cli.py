"""`hawkeye-export bundle|reference|check`."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hawkeye_export import __version__
from hawkeye_export.errors import ExportError
from hawkeye_export.sources import OMNIPARSER_V2

if TYPE_CHECKING:
    from hawkeye_export.captioner import Request


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hawkeye-export", description=__doc__)
    parser.add_argument("--version", action="version", version=f"hawkeye-export {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    detector = argparse.ArgumentParser(add_help=False)
    detector.add_argument(
        "--detector",
        default=OMNIPARSER_V2,
        metavar=f"{OMNIPARSER_V2}|PATH",
        help="fetch the published icon detector, or use your own copy of its model.pt (its sha256 must be the published one)",
    )

    bundle = commands.add_parser("bundle", parents=[detector], help="write a model bundle")
    bundle.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; replaced as a whole")
    bundle.add_argument("--name", help="name in bundle.json (default: the folder's name)")

    bundle.add_argument("--reuse", type=Path, metavar="DIR", help="take detector and OCR from this bundle instead of exporting them again")
    captions = bundle.add_argument_group("captioner", "without --caption the bundle has none, and icons without text get no caption")
    captions.add_argument(
        "--caption",
        metavar=f"{OMNIPARSER_V2}|DIR|HUB_ID|random|random-base|random-endless",
        help="weights (model.safetensors, config.json): the published OmniParser v2 captioner, a folder, a Hugging Face repository; "
        "or, for tests, random ones: narrow, of the published size, or of that size and always of full length",
    )
    captions.add_argument(
        "--caption-tokenizer", metavar="FILE|HUB_ID", help="tokenizer.json (default: beside the weights, else microsoft/Florence-2-base's)"
    )
    captions.add_argument(
        "--caption-dtypes",
        default="float32",
        metavar="LIST",
        help="number formats, of float32, float16, bfloat16, and int8, which is for processors (default: float32)",
    )
    captions.add_argument("--caption-seed", type=int, default=0, metavar="N", help="seed of random weights (default: 0)")

    reference = commands.add_parser("reference", parents=[detector], help="write what the Python stack finds on screenshots")
    reference.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    reference.add_argument("--out", type=Path, metavar="DIR", help="folder for the JSON files (default: beside each image)")

    check = commands.add_parser("check", help="check every sha256 of a bundle")
    check.add_argument("bundle", type=Path, metavar="DIR")
    return parser


def _caption(arguments: argparse.Namespace) -> Request | None:
    if arguments.caption is None:
        return None
    from hawkeye_export.caption_weights import locate
    from hawkeye_export.captioner import Request, parse_dtypes

    dtypes = parse_dtypes(arguments.caption_dtypes)
    return Request(locate(arguments.caption, arguments.caption_tokenizer, arguments.caption_seed), dtypes)


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns 0, or 1 with a message on stderr for an error that a user can act on."""
    arguments = _parser().parse_args(argv)
    # torch.jit is deprecated upstream but is what libtorch loads without Python.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit.*")
    try:
        if arguments.command == "bundle":
            from hawkeye_export.bundle import write_bundle

            caption = _caption(arguments)
            write_bundle(arguments.out, arguments.detector, arguments.name, caption=caption, reuse=arguments.reuse)
            print(arguments.out)
        elif arguments.command == "reference":
            from hawkeye_export.reference import write_references

            for path in write_references(arguments.images, arguments.out, arguments.detector):
                print(path)
        else:
            from hawkeye_export.bundle import check_bundle

            check_bundle(arguments.bundle)
            print(f"{arguments.bundle}: valid")
    except ExportError as error:
        print(f"hawkeye-export: {error}", file=sys.stderr)
        return 1
    return 0
