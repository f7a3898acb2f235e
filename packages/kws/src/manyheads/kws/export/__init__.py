"""Export: ONNX and NIR files of one streaming step, and the accuracy of each file."""
