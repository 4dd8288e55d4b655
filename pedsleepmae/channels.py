"""The 16 channels in their order: names, stand-ins known, unit, and how each is standardised."""

EPOCH_S = 30.0
RATE_HZ = 128.0
EPOCH_SAMPLES = 3840
CHANNEL_NAMES = (
    "EEG C3-M2",
    "EEG O1-M2",
    "EEG O2-M1",
    "EEG CZ-O1",
    "EEG C4-M1",
    "EEG F4-M1",
    "EEG F3-M2",
    "CAPNO",
    "SPO2",
    "RESP THORACIC",
    "RESP ABDOMINAL",
    "SNORE",
    "C-FLOW",
    "EOG LOC-M2",
    "EOG ROC-M1",
    "EMG CHIN1-CHIN2",
)
N_CHANNELS = len(CHANNEL_NAMES)
