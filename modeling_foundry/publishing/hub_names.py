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
    entry.split(":")
    for entry in """
aa:afar ab:abkhazian ae:avestan af:afrikaans ak:akan am:amharic an:aragonese ar:arabic as:assamese av:avaric
ay:aymara az:azerbaijani ba:bashkir be:belarusian bg:bulgarian bh:bihari bi:bislama bm:bambara bn:bengali
bo:tibetan br:breton bs:bosnian ca:catalan ce:chechen ch:chamorro co:corsican cr:cree cs:czech cu:slavonic
cv:chuvash cy:welsh da:danish de:german dv:divehi dz:dzongkha ee:ewe el:greek en:english eo:esperanto es:spanish
et:estonian eu:basque fa:persian ff:fulah fi:finnish fj:fijian fo:faroese fr:french fy:frisian ga:irish
gd:gaelic gl:galician gn:guarani gu:gujarati gv:manx ha:hausa he:hebrew hi:hindi ho:motu hr:croatian ht:haitian
hu:hungarian hy:armenian hz:herero ia:interlingua id:indonesian ie:interlingue ig:igbo ii:yi ik:inupiaq io:ido
is:icelandic it:italian iu:inuktitut ja:japanese jv:javanese ka:georgian kg:kongo ki:kikuyu kj:kuanyama
kk:kazakh kl:greenlandic km:khmer kn:kannada ko:korean kr:kanuri ks:kashmiri ku:kurdish kv:komi kw:cornish
ky:kirghiz la:latin lb:luxembourgish lg:ganda li:limburgish ln:lingala lo:lao lt:lithuanian lu:luba lv:latvian
mg:malagasy mh:marshallese mi:maori mk:macedonian ml:malayalam mn:mongolian mr:marathi ms:malay mt:maltese
my:burmese na:nauru nb:bokmål nd:ndebele ne:nepali ng:ndonga nl:dutch nn:nynorsk no:norwegian nr:ndebele
nv:navajo ny:chichewa oc:occitan oj:ojibwa om:oromo or:odia os:ossetian pa:punjabi pi:pali pl:polish ps:pashto
pt:portuguese qu:quechua rm:romansh rn:rundi ro:romanian ru:russian rw:kinyarwanda sa:sanskrit sc:sardinian
sd:sindhi se:sami sg:sango si:sinhala sk:slovak sl:slovenian sm:samoan sn:shona so:somali sq:albanian sr:serbian
ss:swati st:sotho su:sundanese sv:swedish sw:swahili ta:tamil te:telugu tg:tajik th:thai ti:tigrinya tk:turkmen
tl:tagalog tn:tswana to:tonga tr:turkish ts:tsonga tt:tatar tw:twi ty:tahitian ug:uighur uk:ukrainian ur:urdu
uz:uzbek ve:venda vi:vietnamese vo:volapük wa:walloon wo:wolof xh:xhosa yi:yiddish yo:yoruba za:zhuang
zh:chinese zu:zulu
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
