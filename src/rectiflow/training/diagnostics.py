"""What a person can judge the training of an autoencoder by, and when it has to be said that something is wrong."""

from collections.abc import Mapping

from torch import Tensor

from rectiflow.autoencoders.posterior import Posterior
from rectiflow.training.autoencoder_config import AutoencoderRunConfig

DEAD_NATS = 0.01
_SURE, _CHANCE = 0.98, 0.01
_BLIND = 0.02


def latent_diagnostics(posterior: Posterior, divergence: Tensor) -> dict[str, Tensor]:
    """KL of each latent channel in nats an element, the number of dead ones, and the latents' deviation; scalars.

    A channel is dead if its KL is under a hundredth of a nat: it says next to nothing of the picture.
    """
    by_channel = divergence.detach().transpose(0, 1).flatten(1).mean(1)
    return {
        "kl": by_channel.mean(),
        "dead_channels": (by_channel < DEAD_NATS).sum().float(),
        "latent_deviation": posterior.mean.detach().std(),
        **{f"kl_channel_{channel:02d}": value for channel, value in enumerate(by_channel)},
    }


def latents_dead(means: Mapping[str, float], config: AutoencoderRunConfig) -> dict[str, str]:
    """The alarm that latents say nothing, by its name."""
    channels, dead = config.network.latent_channels, means.get("dead_channels", 0.0)
    if dead < channels - 0.5:
        return {}
    return {
        "dead": f"alarm: all {channels} latent channels are dead (KL under {DEAD_NATS} nats an element): the decoder "
        f"ignores them. Try a smaller loss.kl (now {config.loss.kl:g}) or a lower optimiser.lr "
        f"(now {config.optimiser.lr:g}) in another --run."
    }


def verdict(means: Mapping[str, float], config: AutoencoderRunConfig) -> dict[str, str]:
    """The alarm that the game with the discriminator is over, by its name: it tells nothing, or it has won."""
    if "discriminator_accuracy" not in means or "adaptive_weight" not in means:
        return {}
    accuracy = means["discriminator_accuracy"]
    gap = means["logits_real"] - means["logits_made"]
    rate = config.discriminator.lr or config.optimiser.lr
    if abs(accuracy - 0.5) < _CHANCE and abs(gap) < _BLIND:
        return {
            "collapsed": f"alarm: the discriminator has collapsed: it is right in {accuracy:.0%} of the patches and "
            f"its logits of real and made pictures differ by {gap:.3f}, so it teaches nothing. Try a higher "
            f"discriminator.lr (now {rate:g}), a later discriminator.start or a greater discriminator.width in another "
            "--run; the autoencoder goes on by its reconstruction."
        }
    if accuracy > _SURE:
        return {
            "won": f"alarm: the discriminator has won: it is right in {accuracy:.0%} of the patches, so its gradient "
            f"says little of how to do better. Try discriminator.penalty=0.001 (R1), discriminator.lecam=0.001 or a "
            f"lower discriminator.lr (now {rate:g}) in another --run."
        }
    return {}
