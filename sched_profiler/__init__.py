"""Profiler for the scheduler of a continuous-batching LLM engine."""

from __future__ import annotations

__version__ = "0.1.0"
