"""How much a synthetic workload draws."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Size:
    """S steps of T tokens through L layers of E experts, K experts a token, on G devices.

    Attributes:
        num_steps: S.
        num_layers: L.
        num_experts: E.
        tokens_per_step: T.
        top_k: K.
        num_devices: G; tokens start on them, and some shapes are about the experts of one device. Experts lie on
            devices in order of their number, device sizes differ by one at most.

    Raises:
        ValueError: a number below 1, more devices than experts, or no expert that a token could leave out.
    """

    num_steps: int
    num_layers: int
    num_experts: int
    tokens_per_step: int
    top_k: int
    num_devices: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be at least 1, got {getattr(self, field.name)}")
        if self.top_k >= self.num_experts:
            raise ValueError(f"top_k must be below the {self.num_experts} experts, got {self.top_k}")
        if self.num_devices > self.num_experts:
            raise ValueError(f"{self.num_devices} devices for {self.num_experts} experts: some would hold none")
