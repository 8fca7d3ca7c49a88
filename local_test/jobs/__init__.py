"""SageMaker's jobs, run on this machine: training, processing, tuning and batch transform."""
