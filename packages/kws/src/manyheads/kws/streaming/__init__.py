"""Live keyword spotting: the state of a stream, detections, and the file of a spotter."""
