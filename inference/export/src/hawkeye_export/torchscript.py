"""Saves TorchScript so that the same weights and code give the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch

from hawkeye_export.errors import ExportError


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Writes the module without debug records and example inputs.

    Those hold the exporter's source lines and absolute paths: nothing needs them to run, and they would make two
    exports differ.
    """
    whole = path.with_name(f"{path.name}.whole")
    module.save(str(whole))
    try:
        reader = torch._C.PyTorchFileReader(str(whole))
        writer = torch._C.PyTorchFileWriter(str(path))
        writer.set_min_version(_format_version(reader))
        for name in reader.get_all_records():
            if name.endswith(".debug_pkl") or name.startswith((".data/", "traced_inputs")) or name == "version":
                continue  # the writer adds .data and the version itself
            data = reader.get_record(name)
            writer.write_record(name, data, len(data))
        writer.write_end_of_file()
        if _format_version(torch._C.PyTorchFileReader(str(path))) != _format_version(reader):
            raise ExportError(f"{path.name}: the file format version changed while saving")
    finally:
        whole.unlink()


def _format_version(reader: torch._C.PyTorchFileReader) -> int:
    # Which of the two records a file has depends on the version.
    name = ".data/version" if reader.has_record(".data/version") else "version"
    return int(reader.get_record(name))
