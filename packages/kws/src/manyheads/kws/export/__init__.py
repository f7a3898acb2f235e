"""Export: ONNX and NIR files of one step, and the accuracy that each file keeps."""
