"""Settings of a run of the toy modality that repeats itself to the bit, and may be struck by a signal.

The target of the flow pass is the average, and the samples to reconstruct are drawn, so that both must be continued.
"""

# Validation comes once between the batches of an accumulation (batch 4) and once behind an optimizer step (batch 9).
EXACT = """
model:
  adapters:
    curve: {class_path: exact_curves.NoisyCurveAdapter, init_args: {num_points: 8}}
  optimizer: {lr: 0.01, warmup_steps: 2}
  flow_target: average
  reconstruction_share: 0.5
data: {class_path: exact_curves.ExactCurveDataModule, init_args: {num_points: 8, num_curves: 48, batch_size: 4}}
trainer:
  max_epochs: 2
  val_check_interval: 5
  accumulate_grad_batches: 2
  num_sanity_val_steps: 0
  callbacks:
    - {class_path: exact_curves.Misfortune}
    - {class_path: unite.callbacks.WeightAveraging}
    - class_path: unite.callbacks.GenerationMetrics
      init_args: {num_samples: 4, num_steps: 2, num_drawn: 0, every_n_validations: 2}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/curve/points, filename: best}
    - {class_path: unite.callbacks.last_checkpoint.LastCheckpoint, init_args: {every_n_train_steps: 4}}
"""
