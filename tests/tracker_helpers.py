"""What trackers wrote, read back."""

import csv
import json
import os
import signal
import struct
import zipfile
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BLOCK, WHOLE, FIRST, LAST = 32768, 1, 2, 4


class SignalAt(Callback):
    """Ends the run as a terminal does, while an optimizer step is being taken."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def csv_rows(folder):
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def steady(rows):
    """Rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def tensorboard(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found, name):
    return [(point.step, point.value) for point in found.Scalars(name)]


def texts(found, name):
    events = found.Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def wandb_records(path):
    """The records of an offline run, from its file: LevelDB's log format behind a header of 7."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


class WandBRun:
    """An offline run of Weights & Biases."""

    def __init__(self, path):
        self.path, self.rows, self.config, self.axes, self.status = path, [], [], {}, None
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config += [item.key for item in record.run.config.update]
            elif kind == "config":
                self.config += [item.key or item.nested_key[0] for item in record.config.update]
            elif kind == "history":
                row = {}
                for item in record.history.item:
                    name, *inner = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    row[name] = row.get(name, {}) | {inner[0]: value} if inner else value
                self.rows.append(row)
            elif kind == "metric":
                metric = record.metric
                self.axes[metric.name or metric.glob_name] = metric.step_metric
            elif kind == "exit":
                self.status = record.exit.exit_code


def wandb_runs(folder):
    return [WandBRun(path) for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"))]


def comet_messages(folder):
    """All that the offline archives of a run hold, in the order in which they were written."""
    for path in sorted((folder / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime):
        with zipfile.ZipFile(path) as archive:
            for line in archive.read("messages.json").splitlines():
                yield json.loads(line)
