"""What computes the stages: exported graphs in onnxruntime, TensorRT engines, torch compiled or as CUDA graphs."""
