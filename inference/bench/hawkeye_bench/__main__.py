"""Times the service beside the Python pipeline, both in one run and in turn, and writes a table and out/bench/inference.json.

Scenarios that this machine cannot run are left out. Every crop is captioned for 20 tokens; OCR is off but in its own rows, the crop cache
is off but in the rows named after it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hawkeye_bench.about import ROOT, command, commit, processor, versions
from hawkeye_bench.bundle import assemble
from hawkeye_bench.report import Row, Times, document, summed_up, table
from hawkeye_bench.screens import SCREENS
from hawkeye_bench.service import STAGES, Service, ServiceError

CPU_CORES = 2
"""What the rows of the processor are measured with, both sides alike."""

PROMPT = "detailedCaption"
"""That of the profiles Balanced and Quality."""

CACHE = 8192
"""Captions that the service remembers by default."""

PACKAGES = ("torch", "transformers", "ultralytics", "rapidocr", "onnxruntime", "opencv-python-headless", "numpy", "pillow")


class ScenarioError(Exception):
    """The two sides did not do the same work."""


@dataclass(frozen=True)
class Scenario:
    """What is timed. `clients` above 1 asks for throughput. `ocr`: only the stage that reads text counts, on both sides. `cached`: the
    service has seen the screenshot before, and remembers its captions. `dtype`: a number format other than the device's fastest. `options`:
    further ones of the service."""

    name: str
    device: str
    screen: str
    crops: int = 0
    ocr: bool = False
    clients: int = 1
    cached: bool = False
    dtype: str = ""
    rounds: int = 5
    options: tuple[str, ...] = ()


THROUGHPUT = ("--batch-size", "256", "--workers-per-gpu", "2")
"""For answers a second instead of a soon answer."""

SCENARIOS = (
    Scenario("cpu-30-crops", "cpu", "icons", crops=30),
    Scenario("cpu-30-crops-cached", "cpu", "icons", crops=30, cached=True),
    Scenario("cpu-30-crops-float32", "cpu", "icons", crops=30, dtype="float32"),
    Scenario("cpu-ocr-141-lines", "cpu", "text", ocr=True),
    Scenario("cpu-ocr-141-lines-float32", "cpu", "text", ocr=True, dtype="float32"),
    Scenario("gpu-100-crops", "cuda", "icons", crops=100, rounds=20),
    Scenario("gpu-100-crops-cached", "cuda", "icons", crops=100, cached=True, rounds=10),
    Scenario("gpu-100-crops-32-clients", "cuda", "icons", crops=100, clients=32, rounds=5, options=THROUGHPUT),
    Scenario("gpu-ocr-141-lines", "cuda", "text", ocr=True, rounds=5),
)

WARM_UP = 2
"""Rounds before those that count."""

SHIPPED_ROUNDS = 2
"""Of crops at 768×768 on a processor: minutes each."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="hawkeye_bench", description=__doc__)
    parser.add_argument("--program", type=Path, required=True, help="the built hawkeye-inference")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="a bundle whose detector and text models are used")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="where the timed bundle is, or is made")
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench/inference.json")
    parser.add_argument("--only", metavar="PATTERN", default="", help="scenarios whose name this regular expression finds")
    parser.add_argument("--rounds", type=int, help="instead of each scenario's own")
    parser.add_argument("--cpu-dtype", default=cpu_dtype(), help="number format of the service on the processor (default here: %(default)s)")
    parser.add_argument("--cuda-dtype", default="float16", help="number format of the service on CUDA (default: %(default)s)")
    parser.add_argument("--shipped-rounds", type=int, default=SHIPPED_ROUNDS, help="rounds of the reference as shipped, 0 for none")
    arguments = parser.parse_args()

    import torch

    dtypes = {"cpu": arguments.cpu_dtype, "cuda": arguments.cuda_dtype}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = [
        replace(scenario, dtype=scenario.dtype or dtypes[scenario.device])
        for scenario in SCENARIOS
        if scenario.device in devices and scenario.dtype != dtypes[scenario.device] and re.search(arguments.only, scenario.name)
    ]
    wanted = tuple(dict.fromkeys(scenario.dtype for scenario in chosen))
    bundle = assemble(arguments.models, arguments.bundle, wanted)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "commit": commit(), "command": command("hawkeye_bench", sys.argv[1:]), "machine": machine(devices), "versions": versions(*PACKAGES),
        "reference": "ultralytics, rapidocr on ONNX Runtime, Hugging Face's Florence-2; float32 on the CPU, float16 on CUDA",
    }  # fmt: skip
    rows: list[Row] = []
    failed = False
    # Those of the processor last: they confine this process to two cores.
    for scenario in sorted(chosen, key=lambda scenario: scenario.device == "cpu"):
        print(f"== {scenario.name}", file=sys.stderr, flush=True)
        try:
            rows.append(measure(scenario, bundle, arguments))
        except (ScenarioError, ServiceError, ValueError) as error:
            print(f"{scenario.name} is left out: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        print(table(rows[-1:]), file=sys.stderr, flush=True)
        # After each row: the later ones take minutes.
        arguments.out.write_text(json.dumps(document(rows, about), indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"\n{arguments.out}")
    return int(failed or not rows)


def measure(scenario: Scenario, bundle: Path, arguments: argparse.Namespace) -> Row:
    picture = base64.b64encode(SCREENS[scenario.screen]()).decode()
    rounds = arguments.rounds or scenario.rounds
    cores = confined_to(CPU_CORES) if scenario.device == "cpu" else None
    options = ["--bundle", str(bundle), "--allow-test-bundle", "--device", scenario.device, "--dtype", scenario.dtype, "--profile", "quality"]
    # Room for every client at once: what is timed is no refusal.
    options += ["--enable-ocr", str(scenario.ocr).lower(), "--queue", str(4 * scenario.clients)]
    options += ["--crop-cache", str(CACHE if scenario.cached else 0)]
    if scenario.crops:
        options += ["--max-captions", str(scenario.crops)]
    options += scenario.options
    log = arguments.out.parent / f"{scenario.name}.log"
    with Service(arguments.program, options, log, cores) as service:
        times = read_text(scenario, service, picture, rounds) if scenario.ocr else caption(scenario, service, picture, rounds, arguments)
    return summed_up(scenario.name, scenario.device, scenario.dtype, times)


def confined_to(count: int) -> set[int]:
    """Keeps this process on that many cores from now on, and returns them. The scenarios of processors come last."""
    import torch

    cores = set(sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(len(cores))
    os.sched_setaffinity(0, cores)
    return cores


def caption(scenario: Scenario, service: Service, picture: str, rounds: int, arguments: argparse.Namespace) -> Times:
    """Ours and the reference in turn."""
    from hawkeye_bench.reference import Reference

    reference = Reference(scenario.device, PROMPT)
    client, times, body = service.client(), Times(), json.dumps({"image": picture}).encode()
    # The reference has no cache. On CUDA it takes crops of 64×64 as shipped, too.
    shipped_rounds = arguments.shipped_rounds if scenario.device == "cpu" and not scenario.cached else 0
    for round_ in range(WARM_UP + rounds):
        theirs = sum(reference.parse(picture, scenario.crops).values())
        took, answer = client.parse(body)
        found = sum(1 for element in answer["elements"] if element["caption"] is not None)
        if answer["device"] != scenario.device or found != scenario.crops or not answer["som_image"]:
            raise ScenarioError(f"{found} captions on {answer['device']}, {scenario.crops} on {scenario.device} were asked for")
        if round_ >= WARM_UP:
            times.reference.append(theirs)
            times.ours.append(took)
            times.stages.append(stages(answer))
            if len(times.as_shipped) < shipped_rounds:
                times.as_shipped.append(sum(reference.parse(picture, scenario.crops, as_shipped=True).values()))
    if scenario.clients > 1:
        service.throughput(body, scenario.clients, 2.0)
        times.throughput, times.ours = service.throughput(body, scenario.clients, 15.0)
    if scenario.device != "cpu":
        times.as_shipped = times.reference
    return times


def read_text(scenario: Scenario, service: Service, picture: str, rounds: int) -> Times:
    """The stages that read text, in turn."""
    from hawkeye_bench.reference import OcrReference

    reference = OcrReference(CPU_CORES if scenario.device == "cpu" else None)
    client, times = service.client(), Times()
    body = json.dumps({"image": picture, "include_som": False}).encode()
    for round_ in range(WARM_UP + rounds):
        theirs, lines = reference.read(picture)
        _, answer = client.parse(body)
        if abs(answer["ocr_detected"] - lines) > 0.05 * lines or lines < 100:
            raise ScenarioError(f"{answer['ocr_detected']} lines, the reference reads {lines}")
        if round_ >= WARM_UP:
            times.reference.append(theirs)
            times.ours.append(answer["timings_ms"]["ocr"])
            times.stages.append(stages(answer))
    return times


def stages(answer: dict[str, Any]) -> dict[str, float]:
    return {name: answer["timings_ms"].get(name) or 0.0 for name in STAGES}


def cpu_dtype() -> str:
    """bfloat16 where the processor multiplies it, else float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def machine(devices: list[str]) -> dict[str, Any]:
    import torch

    gpu = {"gpu": torch.cuda.get_device_name(0)} if "cuda" in devices else {}
    return {**processor(), "cpuRowsUse": CPU_CORES, **gpu}


if __name__ == "__main__":
    sys.exit(main())
