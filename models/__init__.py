"""The network: tiers, fusion, mask decoder, discriminator, losses and the gate."""
