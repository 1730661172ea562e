"""Reads CSV from standard input as Python's own reader does, and prints its rows as JSON."""
import csv
import io
import json
import sys

text = sys.stdin.buffer.read().decode("utf-8-sig")
json.dump(list(csv.reader(io.StringIO(text, newline=""), strict=True)), sys.stdout)
