"""Names and identifiers as the Hub takes them, so that none is refused only at the push, after training and export."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# https://huggingface.co/docs/hub/repositories-licenses, as of 2026-08-22.
LICENSES = frozenset(
    """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
grok2-community gemma unknown other
    """.split()
)
# ISO 639-1 with an English name each.
LANGUAGES = dict(
    entry.split("_")
    for entry in """
aa_afar ab_abkhazian ae_avestan af_afrikaans ak_akan am_amharic an_aragonese ar_arabic as_assamese av_avaric
ay_aymara az_azerbaijani ba_bashkir be_belarusian bg_bulgarian bh_bihari bi_bislama bm_bambara bn_bengali
bo_tibetan br_breton bs_bosnian ca_catalan ce_chechen ch_chamorro co_corsican cr_cree cs_czech cu_slavonic
cv_chuvash cy_welsh da_danish de_german dv_divehi dz_dzongkha ee_ewe el_greek en_english eo_esperanto es_spanish
et_estonian eu_basque fa_persian ff_fulah fi_finnish fj_fijian fo_faroese fr_french fy_frisian ga_irish
gd_gaelic gl_galician gn_guarani gu_gujarati gv_manx ha_hausa he_hebrew hi_hindi ho_motu hr_croatian ht_haitian
hu_hungarian hy_armenian hz_herero ia_interlingua id_indonesian ie_interlingue ig_igbo ii_yi ik_inupiaq io_ido
is_icelandic it_italian iu_inuktitut ja_japanese jv_javanese ka_georgian kg_kongo ki_kikuyu kj_kuanyama
kk_kazakh kl_greenlandic km_khmer kn_kannada ko_korean kr_kanuri ks_kashmiri ku_kurdish kv_komi kw_cornish
ky_kirghiz la_latin lb_luxembourgish lg_ganda li_limburgish ln_lingala lo_lao lt_lithuanian lu_luba lv_latvian
mg_malagasy mh_marshallese mi_maori mk_macedonian ml_malayalam mn_mongolian mr_marathi ms_malay mt_maltese
my_burmese na_nauru nb_bokmål nd_ndebele ne_nepali ng_ndonga nl_dutch nn_nynorsk no_norwegian nr_ndebele
nv_navajo ny_chichewa oc_occitan oj_ojibwa om_oromo or_odia os_ossetian pa_punjabi pi_pali pl_polish ps_pashto
pt_portuguese qu_quechua rm_romansh rn_rundi ro_romanian ru_russian rw_kinyarwanda sa_sanskrit sc_sardinian
sd_sindhi se_sami sg_sango si_sinhala sk_slovak sl_slovenian sm_samoan sn_shona so_somali sq_albanian sr_serbian
ss_swati st_sotho su_sundanese sv_swedish sw_swahili ta_tamil te_telugu tg_tajik th_thai ti_tigrinya tk_turkmen
tl_tagalog tn_tswana to_tonga tr_turkish ts_tsonga tt_tatar tw_twi ty_tahitian ug_uighur uk_ukrainian ur_urdu
uz_uzbek ve_venda vi_vietnamese vo_volapük wa_walloon wo_wolof xh_xhosa yi_yiddish yo_yoruba za_zhuang
zh_chinese zu_zulu
    """.split()
)
OTHER_LANGUAGES = ("code", "multilingual")  # what the Hub takes beside ISO 639-1, -2 and -3
OWNER_AND_NAME = re.compile(r"[^/\s]+/[^/\s]+")


def check_repository(repo_id: str) -> None:
    """Raise ValueError unless the Hub takes ``repo_id``, with a name that it would take."""
    if not OWNER_AND_NAME.fullmatch(repo_id):
        raise ValueError(f"expected user-or-organisation/name, found {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        words = re.sub(r":? '[^']*'\.?$", "", " ".join(str(error).split()))
        raise ValueError(f"the Hub refuses {repo_id!r} ({words}){_or(_taken_by_the_hub(repo_id))}") from error


def check_license(identifier: str) -> None:
    """Raise ValueError unless ``identifier`` is one of the Hub's, with the nearest of them."""
    if identifier in LICENSES:
        return
    words = re.sub(
        r"\b(the|licen[sc]e|version|v)\b", " ", identifier.lower().replace("_", " ").replace("-", " ")
    )
    words = "-".join(re.sub(r"\bv(?=\d)|(?<=[a-z])v(?=\d)", " ", words).split())
    nearest = words if words in LICENSES else _nearest(words, LICENSES, 0.6)
    raise ValueError(
        f"{identifier!r} is no licence identifier of the Hub{_or(nearest)} (all, other and unknown among them: "
        "https://huggingface.co/docs/hub/repositories-licenses)"
    )


def check_language(code: str) -> None:
    """Raise ValueError unless ``code`` is one that the Hub takes; codes of three letters are checked by form only."""
    if code in LANGUAGES or code in OTHER_LANGUAGES or re.fullmatch("[a-z]{3}", code):
        return
    lower = code.lower()
    names = {name: short for short, name in LANGUAGES.items()}
    nearest = lower if lower in LANGUAGES else names.get(lower)
    if nearest is None and (main := re.split("[-_]", lower)[0]) in LANGUAGES:
        nearest = main
    if nearest is None:
        nearest = names.get(_nearest(lower, names, 0.85) or "")
    raise ValueError(
        f"{code!r} is no language code of the Hub{_or(nearest)} (ISO 639 in two or three small letters, code or "
        "multilingual)"
    )


def _taken_by_the_hub(repo_id: str) -> str | None:
    parts = [
        re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII) for part in repo_id.removesuffix(".git").split("/")
    ]
    name = "/".join(re.sub(r"([-.])[-.]+", r"\1", part).strip("-.") for part in parts)[:96].rstrip("-.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _nearest(word: str, known: Iterable[str], likeness: float) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def _or(nearest: str | None) -> str:
    return "" if nearest is None else f"; did you mean {nearest}?"
