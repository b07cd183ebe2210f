"""Small files of every kind that a filter must keep or drop: the input of the tables of outcomes.

Nearly all are over 1,000 bytes, since CodeGeeX drops smaller ones, and have a permissive license.
"""

from __future__ import annotations

import base64
import json
import random

from codellama_jax.data.prepare.records import Record

PYTHON = '''"""Reads temperatures of weather stations and computes their means."""

import csv
import statistics
from collections import defaultdict


class Station:
    """A station with its name and its measurements in degrees Celsius."""

    def __init__(self, name, measurements):
        self.name = name
        self.measurements = list(measurements)

    def mean(self):
        # An empty station has no mean, and the caller must not divide by zero.
        if not self.measurements:
            return None
        return statistics.mean(self.measurements)

    def __repr__(self):
        return f"Station({self.name!r}, {len(self.measurements)} measurements)"


def read_stations(path):
    """Returns the stations of a CSV file with the columns name and temperature."""
    by_name = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            by_name[row["name"]].append(float(row["temperature"]))
    return [Station(name, values) for name, values in sorted(by_name.items())]


def warmest(stations):
    """Returns the station with the highest mean, None if no station has one."""
    known = [station for station in stations if station.mean() is not None]
    return max(known, key=Station.mean) if known else None
'''

JAVASCRIPT = """// Draws a bar chart of the stations into a canvas element of the page.
import { scaleLinear } from "d3-scale";

export function drawChart(canvas, stations) {
  const context = canvas.getContext("2d");
  const height = scaleLinear().domain([0, 40]).range([0, canvas.height]);
  stations.forEach((station, index) => {
    const top = canvas.height - height(station.mean);
    context.fillStyle = station.selected ? "orange" : "steelblue";
    context.fillRect(index * 20, top, 18, height(station.mean));
  });
}

export function nearestStation(stations, position) {
  let nearest = null;
  for (const station of stations) {
    const distance = Math.hypot(station.x - position.x, station.y - position.y);
    if (nearest === null || distance < nearest.distance) {
      nearest = { station, distance };
    }
  }
  return nearest && nearest.station;
}

export function formatTemperature(value) {
  return Number.isFinite(value) ? value.toFixed(1) + " degrees" : "unknown";
}

export function averageOf(stations) {
  const total = stations.reduce((sum, station) => sum + station.mean, 0);
  return stations.length === 0 ? null : total / stations.length;
}
"""

JAVA = """package weather;

import java.util.List;
import java.util.Optional;

/** A station with its name and its measurements in degrees Celsius. */
public final class Station {
    private final String name;
    private final List<Double> measurements;

    public Station(String name, List<Double> measurements) {
        this.name = name;
        this.measurements = List.copyOf(measurements);
    }

    /** Returns the mean of the measurements, empty if there are none. */
    public Optional<Double> mean() {
        if (measurements.isEmpty()) {
            return Optional.empty();
        }
        double total = 0;
        for (double measurement : measurements) {
            total += measurement;
        }
        return Optional.of(total / measurements.size());
    }

    public String describe() {
        return name + " with " + measurements.size() + " measurements";
    }

    public boolean isWarmerThan(Station other) {
        // A station without measurements is never the warmer one.
        return mean().orElse(-273.15) > other.mean().orElse(-273.15);
    }
}
"""

PROSE = (
    "The library reads the measurements of weather stations and computes their means. It needs no"
    " network, since all of its data comes from files that the user names. "
)
CHINESE = "# 计算所有气象站的平均温度，并返回温度最高的站点。\n"


def _words(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    vocabulary = sorted(set(PROSE.replace(".", "").lower().split()))
    return " ".join(rng.choice(vocabulary) for _ in range(count))


def _blob(size: int, seed: int = 0) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size)).decode()


def _numbers(rows: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    lines = []
    for _ in range(rows):
        lines.append(", ".join(f"{rng.uniform(-9, 9):.4f}" for _ in range(8)))
    return ",\n    ".join(lines)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(text[i : i + width] for i in range(0, len(text), width))


def _html(paragraphs: int, scripts: int) -> str:
    body = f"<p>\n{_wrapped(PROSE, 80)}</p>\n" * paragraphs
    calls = [f"<script>var x{i} = {i} * 17; update(x{i});</script>\n" for i in range(scripts)]
    head = "<!DOCTYPE html>\n<html>\n<head><title>Stations</title></head>\n"
    return head + "".join(calls) + body + "</html>\n"


def _yaml(entries: int) -> str:
    return "".join(f"- name: station\n  place: {_words(3, i)}\n" for i in range(entries))


def _lock_file() -> str:
    packages = {}
    for i in range(60):
        integrity = "sha512-" + _blob(64, i)
        packages[f"node_modules/package-{i}"] = {"version": f"1.{i}.0", "integrity": integrity}
    return json.dumps({"lockfileVersion": 3, "packages": packages}, indent=2)


def _notebook() -> str:
    cell = {"cell_type": "code", "outputs": [], "source": PYTHON.splitlines(keepends=True)}
    return json.dumps({"cells": [cell] * 4, "nbformat": 4}, indent=1)


def _minified() -> str:
    return ";".join(line.strip() for line in JAVASCRIPT.splitlines()[1:]) * 2


MIT = """MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

PYTHON2 = PYTHON + '\nif __name__ == "__main__":\n    print warmest(read_stations("a.csv"))\n'
AWS_KEY = "AKIA" + "Q3XH7ZPL5M2VKD8T"
PRIVATE_KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + _wrapped(_blob(600, 7), 64)
    + "\n-----END RSA PRIVATE KEY-----\n"
)
DIGESTS = "".join(
    f'    "file{i}.tar.gz": "{random.Random(i).randbytes(32).hex()}",\n' for i in range(20)
)


def _texts() -> dict[str, str]:
    """Returns the texts by path, except those of records with special metadata."""
    return {
        # Code that a person wrote
        "clean.py": PYTHON,
        "clean.js": JAVASCRIPT,
        "clean.java": JAVA,
        "crlf.py": PYTHON.replace("\n", "\r\n"),
        "old_mac_lines.py": PYTHON.replace("\n", "\r"),
        "bom.py": "\ufeff" + PYTHON,
        "tabs.py": PYTHON.replace("    ", "\t"),
        "no_final_newline.py": PYTHON.rstrip("\n"),
        "form_feed.py": PYTHON.replace("\n\n\nclass", "\n\n\x0c\nclass"),
        "unicode_names.py": PYTHON.replace("station", "température").replace("Station", "Größe"),
        "chinese_comments.py": PYTHON + CHINESE * 20,
        "emoji.py": PYTHON + '\nICONS = "🌡️☀️🌧️"\n',
        "shebang.py": "#!/usr/bin/env python3\n" + PYTHON,
        "versions.py": PYTHON + '\nVERSION = "1.2.3.4"\n',
        "colours.py": PYTHON + '\nCOLOURS = ["#a1b2c3", "#ffeedd"]\n',
        "mentions_generated.py": PYTHON + "\n# The report is made: do not edit.\n",
        "long_string.py": PYTHON + f'\nHELP = "{_words(120)}"\n',
        # Small files
        "empty.py": "",
        "blank.py": " \n\t\n\r\n",
        "pkg/__init__.py": "",
        "pkg/init_with_import/__init__.py": "from .station import Station\n",
        "one_line.py": "print('hello')\n",
        "pkg/setup.py": "from setuptools import setup\n\nsetup(name='weather', version='1.0')\n",
        "comment_only.py": f"# {_words(8)}\n" * 30,
        # Syntax
        "python2.py": PYTHON2,
        "broken.py": PYTHON + "\ndef unfinished(:\n",
        "merge_conflict.py": PYTHON + "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> other\n",
        "nested.py": PYTHON + "x = " + "(" * 300 + ")" * 300 + "\n",
        "nul.py": PYTHON.replace("mean", "me\0an", 1),
        # Generated files
        "stations_pb2.py": "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n" + PYTHON,
        "marked.py": "# This file is @generated by tools.\n" + PYTHON,
        "automatic.js": "/* Automatically generated */\n" + JAVASCRIPT,
        "thrift.java": "// Autogenerated by Thrift Compiler (0.9)\n" + JAVA,
        "late_marker.py": "\n" * 10 + "# @generated\n" + PYTHON,
        # Lines
        "minified.js": _minified(),
        "one_long_line.py": PYTHON + f'\nDATA = "{_words(200)}"\n',
        "line_of_1000.py": PYTHON + "# " + "word " * 199 + "end\n",
        "line_of_999.py": PYTHON + "# " + "word " * 199 + "en\n",
        "long_mean.py": "".join(f"text_{i} = '{_words(19, i)}'\n" for i in range(20)),
        "bundle.css": "".join(f".a{i}{{color:red;margin:{i}px}}" for i in range(90)),
        # Data
        "numbers.py": f"VALUES = [\n    {_numbers(40)}\n]\n",
        "hex_table.c": "char t[] = {\n" + _wrapped("0x3f, 0x00, 0x81, " * 90, 72) + "\n};\n",
        "base64.py": 'IMAGE = """\n' + _wrapped(_blob(1500), 76) + '\n"""\n',
        "base64_one_line.py": f'IMAGE = "{_blob(1500)}"\n',
        "punctuation.py": PYTHON[:300] + ("#" * 60 + "\n") * 40,
        "digests.py": "SHA256 = {\n" + DIGESTS + "}\n",
        "table.csv": "".join(f"{i},{i * 37 % 101},{i * i}\n" for i in range(200)),
        # Formats
        "page.html": _html(12, 2),
        "scripts.html": _html(1, 40),
        "short.html": "<html><body><p>Hello, world</p></body></html>\n",
        "layout.xml": '<?xml version="1.0"?>\n<layout>\n' + "  <text>label</text>\n" * 60,
        "late_xml.py": PYTHON + '\nHEADER = "<?xml version=\'1.0\'?>"\n',
        "image.svg": "<svg>\n" + '  <path d="M 10 10 L 90 90 Z"/>\n' * 50 + "</svg>\n",
        "package-lock.json": _lock_file(),
        "settings.json": json.dumps({f"option {w}": w for w in _words(60).split()}, indent=2),
        "tiny.json": '{"a": true}\n',
        "numbers.json": json.dumps([i * 37 % 101 for i in range(400)], indent=1),
        "config.yaml": _yaml(40),
        "large.yml": _yaml(250),
        "notebook.ipynb": _notebook(),
        "README.md": "# Stations\n\n" + "\n\n".join([PROSE * 8] * 3) + "\n",
        "LICENSE": MIT,
        "notes.txt": "\n".join([PROSE] * 10),
        "schema.sql": "SELECT name FROM stations WHERE " + " OR ".join(["name = 'warm'"] * 120),
        "page.aux": "\\relax\n" * 200,
        # Personal data
        "aws_key.py": PYTHON + f'\nAWS_ACCESS_KEY_ID = "{AWS_KEY}"\n',
        "private_key.py": PYTHON + f'\nKEY = """{PRIVATE_KEY}"""\n',
        "author.py": "# Author: Jane Roe <jane.roe@weather-station.net>\n" + PYTHON,
        "server.py": PYTHON + '\nSERVER = "52.95.110.14"\n',
        "local_server.py": PYTHON + '\nSERVER = "127.0.0.1"\n',
    }  # fmt: skip


def planted_files() -> dict[str, Record]:
    """Returns the records by name; the name is also the path."""
    records = {}
    for path, text in _texts().items():
        records[path] = Record(path, text, path, license="mit", stars=100)
    special = {
        "no_stars.py": {"stars": 0},
        "unknown_stars.py": {"stars": -1},
        "gpl.py": {"license": "gpl-3.0"},
        "dual_license.py": {"license": "gpl-2.0 or mit"},
        "unknown_license.py": {"license": ""},
    }
    for path, fields in special.items():
        record = Record(path, PYTHON, path, license="mit", stars=100)
        records[path] = record._replace(**fields)
    return records
