"""What CloudWatch and Application Auto Scaling do: metrics, alarms, scaling policies and containers' logs."""
