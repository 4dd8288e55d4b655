"""What is normal at a child's age: the physiological rules of the simulation, with their sources.

Each function is one rule. Where a source gives a direction but no table that we hold, the numbers
are ours and the docstring says so. Ages in years, 0.25 to 18; a rule holds its last value beyond.

Sources, as the docstrings name them
    AASM          American Academy of Sleep Medicine, Manual for the Scoring of Sleep and
                  Associated Events; its paediatric respiratory rules as in Berry et al., J Clin
                  Sleep Med 2012;8:597
    Campbell      Campbell & Feinberg, Sleep 2016;39:193 (spindle frequencies, ages 6 to 18)
    Cohen         Cohen et al., PLoS ONE 2014;9:e101012 (Prader-Willi: central apnea by age)
    Feinberg      Feinberg & Campbell, Am J Physiol Regul Integr Comp Physiol 2013;304:R296
    Festen        Festen et al., J Clin Endocrinol Metab 2006;91:4911 (53 with Prader-Willi)
    Fleming       Fleming et al., Lancet 2011;377:1011 (heart and respiratory rate, birth to 18)
    Gasser        Gasser et al., Electroencephalogr Clin Neurophysiol 1988;69:91 (ages 6 to 17)
    Gillett       Gillett & Perez, Diseases 2016;4:23 (Prader-Willi: control of breathing)
    Goh           Goh et al., Am J Respir Crit Care Med 2000;162:682 (apnea in children)
    Grigg-Damberger  Grigg-Damberger et al., J Clin Sleep Med 2007;3:201 (scoring of children)
    Karamessinis  Karamessinis et al., Sleep 2007 (REM density over the night in children)
    Kurth         Kurth et al., J Neurosci 2010;30:13211 (map of slow waves, ages 2 to 19)
    Marshall      Marshall et al., Clin Neurophysiol 2002;113:1199 (ages 5 months to 4 years)
    NCH           stage and event counts of the NCH Sleep DataBank (Lee et al., Sci Data 2022;9:421)
    PDR           posterior rhythm of healthy adolescents, Clin Neurophysiol 2008;119:1778
    Rosenberg     Rosenberg & Van Hout, J Clin Sleep Med 2013;9:81 (stages) and 2014 (respiratory
                  events): agreement of thousands of scorers with the majority
    Rusconi       Rusconi et al., Pediatrics 1994;94:350 (respiratory rate awake and asleep)
    Sands         Sands et al., PLoS Comput Biol 2009;5:e1000588 (oxygen in apnea)
    Scholle       Scholle et al., Sleep Med 2011;12:542 (sleep of healthy children, ages 1 to 18)
    Sedky         Sedky et al., J Clin Sleep Med 2014;10:403 (apnea in 224 children, Prader-Willi)
    Shinomiya     Shinomiya et al., Development of sleep spindles in young children and
                  adolescents (ages 4 to 24)
    Kwon          Kwon et al., Sleep 2023 (spindles of 567 children, birth to 18 years)
    Tanguay       Evolution of sleep spindles in childhood, 1975 (26 children, 4 to 68 months)
    Ventura       Ventura et al., Sleep 2022, PMID 34755881 (91 infants of 4 to 5 months)
    eNeuro        spindles from 6 to 21 years, eNeuro 2021;8, ENEURO.0257-21.2021
"""

import numpy as np

WAKE, N1, N2, N3, REM = range(5)
NCH_STAGE_SHARES = (0.182, 0.035, 0.378, 0.239, 0.167)  # W N1 N2 N3 R, all scored epochs
NCH_MEAN_AGE_YEARS = 8.8


def _curve(age_years: float, *points: tuple[float, float]) -> float:
    """Straight lines between (age, value) points, constant beyond the first and the last."""
    ages, values = zip(*points, strict=True)
    return float(np.interp(age_years, ages, values))


# ------------------------------------------------------------------ sleep architecture
def stage_shares(age_years: float) -> np.ndarray:
    """Expected share of the scored night in W, N1, N2, N3, R; (5,), sums to 1.

    At NCH's mean age the shares are within a hundredth of NCH's, whose children are patients: a
    little less wake and R, so that healthy ones sleep as long as in Kurth and the R of all ages is
    what Beck & Marcus report (Sleep Med Clin 2009;4:393). Of sleep, R falls from 27 % at 3.5 to
    18 % at 15 years and N3 to a fifth (Kurth, Scholle) while N2 rises; W and N1 stay; the values
    between are ours.
    """
    shares = np.array(NCH_STAGE_SHARES)
    n3, rem = shares[[N3, REM]] / (1 - shares[WAKE])
    shares[WAKE] -= 0.01
    n3 = _curve(age_years, (0.5, 0.315), (3, 0.31), (8.8, n3), (15.5, 0.205), (18, 0.19))
    rem = _curve(age_years, (0.5, 0.31), (3.5, 0.28), (4.9, 0.202), (8.8, rem - 0.007), (15, 0.182))
    shares[[N3, REM]] = (1 - shares[WAKE]) * np.array((n3, rem))
    shares[N2] = 1 - shares[[WAKE, N1, N3, REM]].sum()
    return shares


def cycle_minutes(age_years: float) -> float:
    """Length of a sleep cycle, minutes: longer with age (Scholle); the two ends are ours."""
    return _curve(age_years, (0.25, 50), (2, 65), (8, 85), (16, 95))


# ------------------------------------------------------------------ EEG
def posterior_rhythm_hz(age_years: float) -> float:
    """Frequency of the posterior dominant rhythm of relaxed wakefulness.

    3.5-4.5 Hz when it appears at 3 to 4 months, 5-6 Hz at 5 to 6 months, 7.5-9.5 Hz at 3 years
    (Grigg-Damberger, AASM; a 6-9 Hz peak that speeds up in Marshall), 9.9 Hz at 15 years (PDR).
    """
    return _curve(age_years, (0.3, 4.0), (0.5, 5.5), (1, 6.5), (3, 8.0), (7, 9.0), (15, 9.9))


def spindle_hz(age_years: float) -> tuple[float, float]:
    """(frontal slow, central fast) spindle frequency.

    Quartiles of 12.8 and 13.3 Hz at 4 to 5 months (Ventura); slow and fast ones part by 18 months,
    and the peak follows a U over the years (Kwon). Frontal 11.0-12.75, centroparietal 12.5-14.5 Hz
    between 4 and 24 years, the fast ones rising steadily, the slow ones mostly in early adolescence
    (Shinomiya; rise also in Campbell, eNeuro).
    """
    slow = _curve(age_years, (0.4, 13.1), (1, 12.9), (4, 11.3), (11, 11.6), (15, 12.4))
    return slow, _curve(age_years, (0.4, 13.1), (1.5, 13.1), (4, 12.8), (18, 14.0))


def spindles_per_minute(age_years: float) -> float:
    """Spindles a minute of N2.

    Counted by a detector 6.6 at 4 to 5 months (Ventura), which misses one in nine of ours; the
    fastest rise before and a second one from 3 to 14 years (Kwon); least from 27 to 54 months
    (Tanguay). Levels from 2 years on are ours.
    """
    points = ((0.1, 1.5), (0.35, 7.1), (0.5, 6.8), (2.25, 3.0), (4, 3.1), (14, 5.0), (18, 4.8))
    return _curve(age_years, *points)


def spindle_s(age_years: float) -> float:
    """Median length of a spindle: 2.9 s at 4 to 5 months (Ventura), shortest about 27 months
    (Tanguay), longer again from 3 to 14 years (Kwon); levels from 2 years on are ours."""
    return _curve(age_years, (0.1, 1.2), (0.35, 2.9), (0.5, 2.7), (2.25, 0.8), (4, 0.85), (14, 1.1))


def slow_wave_gain(age_years: float) -> float:
    """Amplitude of N3 slow waves relative to an 8-year-old's.

    NREM delta power rises from 6 to 8 years and then falls, fastest between 12 and 16.5, by more
    than 60 %, and by amplitude rather than number of waves (Feinberg). Below 6 years ours.
    """
    power = _curve(age_years, (0.25, 0.35), (2, 0.7), (6, 0.9), (8, 1.0), (12, 0.75), (16.5, 0.24))
    return float(np.sqrt(power))


def slow_wave_anterior(age_years: float) -> float:
    """0 to 1: where slow waves are largest, 0 posterior, 1 anterior.

    The maximum moves from posterior to anterior between early childhood and late adolescence
    (Kurth); linear is ours.
    """
    return _curve(age_years, (2, 0.15), (18, 1.0))


def background_gain(age_years: float) -> float:
    """Amplitude of the EEG background relative to an 8-year-old's.

    Absolute power falls with age in nearly all bands (Gasser); the numbers are ours.
    """
    return _curve(age_years, (0.25, 0.9), (2, 1.1), (8, 1.0), (12, 0.86), (16.5, 0.58))


# ------------------------------------------------------------------ breathing and heart
def breaths_per_minute(age_years: float) -> float:
    """Median respiratory rate asleep.

    Awake: 44 at birth, 26 at 2 years, falling into early adolescence (Fleming; points after 2
    years read off its chart, to about one breath). Asleep 0.8 times that: the ratio of the sleep
    and wake medians in infants (Rusconi), taken for all ages.
    """
    awake = _curve(
        age_years, (0, 44), (1, 35), (2, 26), (4, 24), (6, 22), (8, 20.5), (12, 19), (18, 16)
    )
    return 0.8 * awake


def beats_per_minute(age_years: float) -> float:
    """Median heart rate asleep.

    Awake: 145 at one month, 113 at 2 years (Fleming; later points read off its chart, to a few
    beats). Asleep 0.85 times that is ours.
    """
    awake = _curve(age_years, (0.1, 145), (1, 123), (2, 113), (4, 103), (8, 87), (12, 81), (18, 72))
    return 0.85 * awake


def oxygen_fall_mmhg(age_years: float) -> float:
    """Fall of the alveolar oxygen pressure without a breath, mmHg a second.

    Uptake over the lung's resting volume, times 713 mmHg (Sands). Uptake 8 ml a minute and kg in
    infants, 3.5 in adults; volume 20 and 30 ml a kg: round values of textbooks, asleep and lying.
    """
    uptake = _curve(age_years, (0.25, 8.0), (2, 7.0), (8, 5.5), (18, 3.5)) / 60
    return 713 * uptake / _curve(age_years, (0.25, 20), (8, 27), (18, 30))


def shortest_event_s(age_years: float) -> float:
    """Shortest apnea or hypopnea of a child: the time of two breaths (AASM)."""
    return 2 * 60 / breaths_per_minute(age_years)


# ------------------------------------------------------------------ events
def prader_willi_apnea_shares(age_years: float) -> dict[str, float]:
    """Share of each type among the apneas of a child with Prader-Willi syndrome.

    Central apneas prevail in infants and give way to obstructive ones (central sleep apnea in 43 %
    below 2 years, 5 % later: Cohen; central apneas fall with age: Festen); the numbers are ours.
    """
    central = _curve(age_years, (2, 0.85), (6, 0.65), (12, 0.35))
    rest = 1 - APNEA_SHARES["Central Apnea"]
    shares = {name: (1 - central) * share / rest for name, share in APNEA_SHARES.items()}
    return shares | {"Central Apnea": central}


# Share of each type among apneas and among hypopneas: NCH's counts of 15,782 obstructive, 6,938
# central and 2,650 mixed apneas, 42,179 obstructive hypopneas and 14,522 others.
APNEA_SHARES = {"Obstructive Apnea": 0.622, "Central Apnea": 0.274, "Mixed Apnea": 0.104}
HYPOPNEA_SHARES = {"Obstructive Hypopnea": 0.744, "Hypopnea": 0.256}
# Events an hour of each stage relative to N2 (W none). Obstruction in children is a matter of REM
# sleep, where 55 % of obstructive apneas fall into a sixth of the night (Goh); N3 is spared.
STAGE_RISK = {
    "Obstructive Apnea": (0.0, 1.0, 1.0, 0.4, 5.0),
    "Mixed Apnea": (0.0, 1.0, 1.0, 0.4, 5.0),
    "Central Apnea": (0.0, 2.0, 1.0, 0.3, 2.0),
    "Obstructive Hypopnea": (0.0, 1.0, 1.0, 0.5, 3.0),
    "Hypopnea": (0.0, 1.0, 1.0, 0.6, 2.0),
    "EEG arousal": (0.0, 1.5, 1.0, 0.3, 0.8),  # spontaneous ones: rather NREM than REM (Goh)
    "Oxygen Desaturation": (0.0, 1.0, 1.0, 0.6, 1.8),
}
# Share of events that end with an arousal: children often do not wake; ours.
AROUSAL_AFTER = {
    "Obstructive Apnea": 0.5,
    "Mixed Apnea": 0.45,
    "Central Apnea": 0.2,
    "Obstructive Hypopnea": 0.45,
    "Hypopnea": 0.3,
}
# Prader-Willi syndrome: obstructive apnea in 80 % (Sedky), an apnea-hypopnea index of 5.1 an hour
# where 0 to 1 is normal, 2.8 of it central, apneas of 15 s (Festen); low muscle tone, later obesity
# and shallow breathing at night (Gillett). The factors, relative to the other children, are ours.
PRADER_WILLI = {
    "severity": 2.0,  # times as many breathing events; their clip at 2.2 is lifted
    "muscle_gain": 0.6,
    "apnea_duration": 15 / 11,  # Festen's median over ours
    "oxygen_fall": 1.25,  # faster, from the smaller lung of the obese
}
PRADER_WILLI_SPO2_LOWER = 1.5  # percent below the child's baseline
REM_LONGER = 1.25  # apneas last longer and desaturate more in REM (Goh); the factor is ours
SHORTEST_AROUSAL_S = 3.0  # AASM
STABLE_SLEEP_BEFORE_AROUSAL_S = 10.0  # AASM
LEAST_DESATURATION = 3.0  # percent; AASM
LEAST_FLOW_DROP = 0.30  # of the flow in a hypopnea; AASM

# How a scorer deviates from the truth. Agreement with the majority is 82.6 % for stages (N1 63 %,
# N3 67 %, R 90.5 %; hardest at transitions and between N2 and N3) and 77 %, 65 % and 52 % for
# obstructive apneas, hypopneas and central apneas (Rosenberg). A majority is right more often
# than one of its members, and our boundary epochs are ambiguous by themselves, so the rates of
# plain confusion here are about a third of the disagreement there.
STAGE_CONFUSION = np.array(
    [  # scored W, N1, N2, N3, R for a true
        [0.965, 0.025, 0.005, 0.000, 0.005],  # W
        [0.070, 0.840, 0.070, 0.000, 0.020],  # N1
        [0.003, 0.015, 0.937, 0.038, 0.007],  # N2
        [0.000, 0.000, 0.070, 0.930, 0.000],  # N3
        [0.005, 0.012, 0.013, 0.000, 0.970],  # R
    ]
)
MISSED_EVENTS = 0.06
SPURIOUS_EVENTS = 0.04
CONFUSED_EVENTS = 0.05  # apnea scored as hypopnea and the reverse
ONSET_JITTER_S = 0.7
DURATION_JITTER = 0.1  # of the duration, standard deviation of its logarithm
