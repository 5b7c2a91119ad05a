"""Operations on a batch of inputs and targets: images, rows of tables, mixtures of samples."""
