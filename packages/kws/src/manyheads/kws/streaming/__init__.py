"""Streaming keyword spotting: stream state, detections, audio sources and the spotter file."""
